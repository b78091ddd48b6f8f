"""Rollouts over HTTP, under /v1/rollouts.

The executor that changes them is found at ``app.state.executor``; put there by ``fleet/daemon.py``.
"""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from fleet.api.door import call_of
from fleet.errors import RequestError
from fleet.operators.call import Call
from fleet.rollout.changes import OPERATOR_EVENTS
from fleet.rollout.executor import Also, Executor
from fleet.rollout.parsing import parse_spec
from fleet.rollout.record import Rollout
from fleet.rollout.report import describe
from fleet.rollout.spec import bundle_class
from fleet.rollout.states import Event, State

__all__ = ["router"]

MAX_REASON_CHARS: Final = 500
MAX_STRATUM_CHARS: Final = 100
MAX_ENTRIES: Final = 1000
MAX_DEPLOYMENTS: Final = 10_000

# Its own rules check it, and name what is wrong.
Spec = Annotated[dict[str, Any], Body(description="a rollout: the keys of rollout.toml")]

router = APIRouter(prefix="/v1/rollouts", tags=["rollouts"])


class Said(BaseModel):
    """Why an operator does something; ``stratum`` is the one to stop, and said with that alone."""

    model_config = ConfigDict(extra="forbid")
    reason: str = Field(default="", max_length=MAX_REASON_CHARS)
    stratum: str = Field(default="", max_length=MAX_STRATUM_CHARS)


def _executor(request: Request) -> Executor:
    executor: Executor = request.app.state.executor
    return executor


@router.post("/plan")
async def plan(request: Request, spec: Spec) -> dict[str, Any]:
    """Who would be in which stage, and what stands in the way. Changes nothing."""
    return (await _executor(request).plan(parse_spec(spec))).to_json()


@router.post("", status_code=201)
async def start(
    request: Request, spec: Spec, force: bool = False, supersede: bool = False
) -> dict[str, Any]:
    """Start a rollout. A plan with problems is refused unless ``force`` is set.

    Another rollout under way on some of the same devices is a conflict, or ended with ``supersede``.
    """
    executor, call, asked = _executor(request), call_of(request), parse_spec(spec)
    call.object = asked.bundle
    also = _noting(
        call, f"{asked.bundle}{', forced' if force else ''}{', superseding' if supersede else ''}"
    )
    by = call.caller.name
    started = await executor.start(asked, force=force, supersede=supersede, by=by, also=also)
    return started.to_json()


@router.get("")
async def rollouts(
    request: Request,
    model: Annotated[str, Query(max_length=64)] = "",
    state: Annotated[str, Query(max_length=32)] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_ENTRIES)] = 100,
) -> dict[str, Any]:
    """Rollouts, newest first."""
    if state and state not in set(State):
        raise RequestError(f"state {state!r} is not known: use one of {', '.join(State)}")
    found = [
        rollout.to_json()
        for rollout in await _executor(request).rollouts()
        if model in ("", rollout.model) and state in ("", rollout.state)
    ]
    return {"rollouts": found[:limit]}


@router.get("/{rollout_id}")
async def rollout(request: Request, rollout_id: str) -> dict[str, Any]:
    """One rollout: its stages, both arms, why it holds, and its last decisions.

    ``latest`` as an id is the newest rollout.
    """
    executor = _executor(request)
    snapshot, action, entries = await executor.observe(rollout_id)
    return describe(snapshot, action, entries)


@router.get("/{rollout_id}/decisions")
async def decisions(
    request: Request,
    rollout_id: str,
    limit: Annotated[int, Query(ge=1, le=MAX_ENTRIES)] = 100,
    before: Annotated[int, Query(ge=0)] = 0,
) -> dict[str, Any]:
    """The audit trail, newest first; ``before`` is the id of an entry to page on from."""
    entries = await _executor(request).trail(rollout_id, limit=limit, before=before)
    return {"decisions": [entry.to_json() for entry in entries]}


@router.get("/{rollout_id}/audit")
async def audit(request: Request, rollout_id: str) -> dict[str, Any]:
    """Every look and every decision of the controller, made again: equal or not, and where."""
    return (await _executor(request).audit(rollout_id)).to_json()


@router.get("/{rollout_id}/deployments")
async def deployments(
    request: Request,
    rollout_id: str,
    limit: Annotated[int, Query(ge=1, le=MAX_DEPLOYMENTS)] = MAX_DEPLOYMENTS,
    after: Annotated[str, Query(max_length=40)] = "",
) -> dict[str, Any]:
    """The newest known step of every device in this rollout, by device id.

    ``next`` is what to pass as ``after`` for the next page; empty on the last.
    """
    rows = await _executor(request).deployments(rollout_id, after=after, limit=limit + 1)
    more = len(rows) > limit
    return {"deployments": rows[:limit], "next": rows[limit - 1]["device_id"] if more else ""}


@router.post("/{rollout_id}/{event}")
async def change(
    request: Request, rollout_id: str, event: str, said: Said | None = None
) -> dict[str, Any]:
    """pause, resume, approve, advance (with a reason), abort, rollback, or stop_stratum."""
    if event not in OPERATOR_EVENTS:
        raise RequestError(
            f"{event!r} is nothing an operator can do to a rollout: use one of "
            f"{', '.join(OPERATOR_EVENTS)}"
        )
    said = said if said is not None else Said()
    if said.stratum and event != Event.STOP_STRATUM:
        raise RequestError(f"{event} is about a whole rollout: leave stratum out")
    call = call_of(request)
    call.operation, call.object = f"rollout {event}", rollout_id
    changed = await _happen(_executor(request), rollout_id, Event(event), said, call)
    return changed.to_json()


async def _happen(
    executor: Executor, rollout_id: str, event: Event, said: Said, call: Call
) -> Rollout:
    by, reason = call.caller.name, said.reason
    also = _noting(call, " ".join(part for part in (said.stratum, reason) if part))
    if event is Event.ADVANCE:
        return await executor.advance(rollout_id, reason=reason, by=by, also=also)
    if event is Event.STOP_STRATUM:
        stratum = said.stratum
        return await executor.stop_stratum(rollout_id, stratum, reason=reason, by=by, also=also)
    return await executor.change(rollout_id, event, reason=reason, by=by, also=also)


def _noting(call: Call, reason: str) -> Also:
    """What belongs into the transaction of a change: the caller may do it, and the audit log says so.

    Raises (in the transaction, which is then taken back):
        ForbiddenError: the rollout is of a model or class that the caller may not change.
    """

    def also(connection: Connection, changed: Rollout) -> None:
        call.caller.require_scope(changed.model, bundle_class(changed.bundle))
        call.object = changed.id
        call.record(connection, reason)

    return also
