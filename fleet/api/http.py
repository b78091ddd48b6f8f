"""The API for people and their tools: HTTP, JSON, under ``/v1``; described at ``/docs``."""

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.security import HTTPBearer
from sqlalchemy import func, select

from fleet.api import (
    audit_log,
    bundles,
    devices,
    identity,
    problems,
    roles,
    rollouts,
    tokens,
    webhooks,
)
from fleet.api.door import Door
from fleet.api.guard import Guard
from fleet.api.models import Problem, Status
from fleet.api.services import Services
from fleet.connect.outbox import Place, places
from fleet.monitor.ingest import IngestCounters
from fleet.registry.devices import count_devices
from fleet.store.bundles import count_bundles
from fleet.store.tables import rollouts as rollouts_table

__all__ = ["create_app", "product_version"]


# The door checks it; this describes it at /docs.
_BEARER = HTTPBearer(auto_error=False, description="a token: `fleet token create` makes one")


def create_app(services: Services, names: Callable[[], frozenset[str]] = frozenset) -> FastAPI:
    """The application over these parts; ``names`` are the hosts it is known by beside loopback."""
    app = FastAPI(
        title="Muster fleet manager",
        version=product_version(),
        responses={code: {"model": Problem} for code in (400, 401, 403, 404, 409, 422, 429, 500)},
        dependencies=[Depends(_BEARER)],
    )
    app.state.services = services
    app.state.store = services.store
    app.state.executor = services.executor
    app.add_middleware(Door, operators=services.operators)
    app.add_middleware(Guard, names=names)  # the last one added is asked first
    problems.install(app)
    app.include_router(devices.router)
    app.include_router(identity.router)
    app.include_router(bundles.router)
    app.include_router(roles.router)
    app.include_router(rollouts.router)
    app.include_router(webhooks.router)
    app.include_router(tokens.router)
    app.include_router(audit_log.router)
    app.add_api_route("/v1/status", _status, methods=["GET"], response_model=Status)
    return app


def product_version() -> str:
    try:
        return version("muster-edge")
    except PackageNotFoundError:
        return "unknown"  # run from a source folder that is not installed


def _status(request: Request) -> Status:
    """The fleet at a glance."""
    services: Services = request.app.state.services
    with services.store.read() as connection:
        total, online = count_devices(connection)
        by_state = select(rollouts_table.c.state, func.count()).group_by(rollouts_table.c.state)
        states = {row[0]: row[1] for row in connection.execute(by_state)}
        published = count_bundles(connection)
        told = places(connection)
    return Status(
        fleet=services.fleet,
        version=product_version(),
        started_s=services.started_s,
        now_s=services.now_s(),
        devices=total,
        online=online,
        bundles=published,
        rollouts=states,
        pack_version=services.repository.version,
        pack_bytes=len(services.feed.pack),
        broker=dict(services.broker()),
        ingest=_counted(services.ingest.counters),
        offline_keys=list(services.repository.offline_keys()),
        webhooks=_told(told),
    )


def _counted(counters: IngestCounters) -> dict[str, Any]:
    return {
        "windows": counters.windows,
        "events": counters.events,
        "inventories": counters.inventories,
        "repeated": counters.repeated,
        "commits": counters.commits,
        "failed_commits": counters.failed_commits,
        "refused": dict(counters.refused),
    }


def _told(found: Sequence[Place]) -> dict[str, Any]:
    """Events that wait or are lost; empty without webhooks."""
    if not found:
        return {}
    return {
        "pending": sum(one.pending for one in found),
        "given_up": sum(one.given_up for one in found),
        "failing": [one.name for one in found if one.last_error],
    }
