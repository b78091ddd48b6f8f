"""Looking at a stage: reading what is due, and keeping what was seen with the decision it led to.

Rules kept here: a tick at which no look is due reads one row and no counts; a look is stored in the
transaction of its decision, so there is neither an alarm without a rollback nor a look that was spent
and forgotten; what is stored is enough to take the same look again; what a stratum reports counts no
more once it was stopped.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, select

from fleet.errors import ServerError
from fleet.rollout.counting import read_counts
from fleet.rollout.frozen import Evidence, FreshLook, FrozenRing, due_look, next_look_s
from fleet.rollout.gate.evidence import as_json, record
from fleet.rollout.gate.look import look
from fleet.rollout.gate.metrics import Kind
from fleet.rollout.gate.paired import ArmCounts, look_paired
from fleet.rollout.gate.result import Arm, LookResult, MetricResult, StratumResult
from fleet.rollout.gate.ring import Counts, Ring, State
from fleet.rollout.gate.verdict import Verdict
from fleet.rollout.record import Rollout
from fleet.rollout.stored_rings import read_ring, ring_of
from fleet.store.tables import looks
from fleet.store.upsert import insert

__all__ = [
    "keep_look",
    "pack_counts",
    "read_evidence",
    "result_from_json",
    "take",
    "unpack_counts",
    "without_strata",
]

_LENGTH: Final = 8  # bytes before each arm's counts


def read_evidence(connection: Connection, rollout: Rollout, now_s: float) -> Evidence | None:
    """What is known of the stage the rollout is in, with a new look if one is due.

    None while the stage has no ring: see ``begin_ring``.

    Raises:
        ServerError: what is stored is damaged or of another version.
    """
    stored = ring_of(connection, rollout)
    if stored is None:
        return None
    frozen = read_ring(connection, stored.id, stored.digest)
    columns = looks.c
    query = (
        select(columns.number, columns.k, columns.at_s, columns.result)
        .where(columns.ring_id == stored.id)
        .order_by(columns.number.desc())
        .limit(1)
    )
    newest = connection.execute(query).first()
    last = None if newest is None else (newest.k, newest.at_s)
    number = 0 if newest is None else newest.number
    result = None if newest is None else result_from_json(newest.result)
    known = Evidence(stored.id, frozen, number, result, next_look_s(frozen.ring, last))
    k = due_look(frozen.ring, last, now_s) if rollout.spec.guards.compares else 0
    if k == 0:
        return known
    return _look_now(connection, known, k, now_s, rollout.stopped)


def _look_now(
    connection: Connection, known: Evidence, k: int, now_s: float, stopped: Sequence[str]
) -> Evidence:
    frozen = known.frozen
    before = State()
    if known.number:
        columns = looks.c
        query = select(columns.state).where(
            columns.ring_id == known.ring_id, columns.number == known.number
        )
        before = _state(known, connection.execute(query).scalar_one())
    arms = tuple(
        without_strata(frozen.ring, read_counts(connection, known.ring_id, frozen, role), stopped)
        for role in frozen.roles
    )
    outcome = take(frozen, before, arms, k)
    packed = pack_counts(arms)
    told = record(frozen.ring, before, arms[-1], outcome, code_version())
    fresh = FreshLook(k, now_s, outcome[1].to_bytes(), packed, told)
    return replace(
        known,
        number=known.number + 1,
        result=outcome[0],
        next_look_s=next_look_s(frozen.ring, (k, now_s)),
        fresh=fresh,
    )


def without_strata(ring: Ring, counts: Counts, stopped: Sequence[str]) -> Counts:
    """The counts without those of strata that were stopped, in either arm: they leave the bundle.

    Who of them has reported is kept, since that is asked of the stage as it began.
    """
    gone = [number for number, name in enumerate(ring.stratum_names) if name in stopped]
    if not gone:
        return counts
    stays = ~np.isin(ring.strata, gone)
    return Counts(
        {name: np.where(stays, values, 0) for name, values in counts.bad.items()},
        {name: np.where(stays, values, 0) for name, values in counts.total.items()},
        {name: np.where(stays, values, np.nan) for name, values in counts.level.items()},
        counts.reported,
    )


def _state(known: Evidence, body: bytes) -> State:
    try:
        return State.from_bytes(body)
    except ValueError as error:
        raise ServerError(
            f"look {known.number} of ring {known.ring_id} cannot be read: {error}. Pause and resume "
            "its rollout, and the stage begins anew"
        ) from error


def take(
    frozen: FrozenRing, before: State, arms: tuple[Counts, ...], k: int
) -> tuple[LookResult, State]:
    """The look itself. Pure.

    ``arms`` are the counts by role, in the order of ``frozen.roles``.
    """
    if frozen.arm is None:
        return look(frozen.ring, before, arms[0], k)
    return look_paired(frozen.ring, before, ArmCounts(new=arms[1], stable=arms[0]), k)


def keep_look(connection: Connection, rollout: Rollout, evidence: Evidence | None) -> None:
    """Store the look that was just taken, if one was. Repeated, it changes nothing."""
    if evidence is None or evidence.fresh is None or evidence.result is None:
        return
    fresh = evidence.fresh
    row = {
        "ring_id": evidence.ring_id,
        "number": evidence.number,
        "rollout_id": rollout.id,
        "stage": rollout.stage,
        "k": fresh.k,
        "at_s": fresh.at_s,
        "state": fresh.state,
        "result": as_json(evidence.result),
        "evidence": dict(fresh.record),
        "counts": fresh.counts,
    }
    added = insert(connection, looks).values(**row)
    key = [looks.c.ring_id, looks.c.number]
    connection.execute(added.on_conflict_do_nothing(index_elements=key))


def pack_counts(arms: tuple[Counts, ...]) -> bytes:
    """The counts of each arm, small."""
    parts = [counts.to_bytes() for counts in arms]
    framed = b"".join(len(part).to_bytes(_LENGTH, "little") + part for part in parts)
    return zlib.compress(framed, 1)


def unpack_counts(data: bytes) -> tuple[Counts, ...]:
    """Raises ValueError: not counts of this version, or damaged."""
    try:
        framed = zlib.decompress(data)
    except zlib.error as error:
        raise ValueError(f"the stored counts are damaged: {error}") from error
    arms: list[Counts] = []
    at = 0
    while at < len(framed):
        size = int.from_bytes(framed[at : at + _LENGTH], "little")
        at += _LENGTH
        arms.append(Counts.from_bytes(framed[at : at + size]))
        at += size
    return tuple(arms)


def result_from_json(value: Mapping[str, Any]) -> LookResult:
    """The other way of ``as_json``."""
    return LookResult(
        **{
            **value,
            "verdict": Verdict(value["verdict"]),
            "pooled": StratumResult(**value["pooled"]),
            "strata": tuple(StratumResult(**one) for one in value["strata"]),
            "metrics": tuple(_metric(one) for one in value["metrics"]),
            "stopped": tuple(value["stopped"]),
            "newly_stopped": tuple(value["newly_stopped"]),
        }
    )


def _metric(value: Mapping[str, Any]) -> MetricResult:
    arms = {name: Arm(**value[name]) for name in ("cohort", "control")}
    return MetricResult(**{**value, **arms, "kind": Kind(value["kind"])})


def code_version() -> str:
    """The version of the program that decides, for the record."""
    try:
        return version("muster-edge")
    except PackageNotFoundError:
        return "unknown"
