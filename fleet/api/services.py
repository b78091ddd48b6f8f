"""What the handlers of both APIs work with; put together by ``fleet/daemon.py``, found at ``app.state.services``."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fleet.artifacts.folder import FolderArtifacts
from fleet.connect.webhooks import Webhooks
from fleet.messaging.feed import PackFeed
from fleet.monitor.ingest import Ingest
from fleet.operators.desk import Operators
from fleet.registry.identities import Identities
from fleet.repository import Repository
from fleet.rollout.executor import Executor
from fleet.store.engine import Store

__all__ = ["Services"]


def _no_broker() -> Mapping[str, Any]:
    return {"mode": "none", "connected": False}


@dataclass(frozen=True, slots=True)
class Services:
    """The fleet manager's parts. ``publish`` hands the newest pack to every device, however connected."""

    fleet: str
    store: Store
    repository: Repository
    artifacts: FolderArtifacts
    ingest: Ingest
    feed: PackFeed
    executor: Executor
    webhooks: Webhooks
    operators: Operators
    publish: Callable[[], Awaitable[None]]
    identities: Identities | None = None  # with [grpc] tls
    broker: Callable[[], Mapping[str, Any]] = _no_broker  # for people: mode, address, connected
    now_s: Callable[[], float] = time.time
    started_s: float = field(default_factory=time.time)
