"""What a decision was made from, as bytes: so that it can be made again, and compared.

Rules kept here: kept for every decision that changed a rollout, in its transaction; numbers read back
to the same bits; the comparison of the arms is kept once, with its look, and only pointed to.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, Final

from sqlalchemy import Connection, select

from fleet.errors import FleetError
from fleet.rollout import audit
from fleet.rollout.frozen import Evidence, next_look_s
from fleet.rollout.looks import keep_look, result_from_json
from fleet.rollout.parsing import parse_spec
from fleet.rollout.record import Rollout
from fleet.rollout.snapshot import CheckAnswer, ControlArm, DeviceView, Served, Snapshot
from fleet.rollout.states import State
from fleet.rollout.stored_rings import read_ring
from fleet.store.tables import decision_snapshots, looks, rings
from fleet.store.upsert import insert

__all__ = ["keep", "read_kept", "snapshot_from_bytes", "snapshot_to_bytes"]

FORMAT: Final = 1
_VIEW: Final = tuple(field.name for field in fields(DeviceView) if field.name != "served")
_SERVED: Final = tuple(field.name for field in fields(Served))
_PLAIN: Final = ("now_s", "listening_since_s", "limit_bp")


def keep(connection: Connection, snapshot: Snapshot, *, changed: bool) -> None:
    """Keep the look of ``snapshot``, and the snapshot itself when the decision changed the rollout.

    To be called in the transaction of the decision, after its audit entry was written.
    """
    keep_look(connection, snapshot.rollout, snapshot.evidence)
    entry = audit.last_entry(connection, snapshot.rollout.id) if changed else None
    if entry is None:
        return
    row = {
        "decision_id": entry.id,
        "rollout_id": snapshot.rollout.id,
        "body": snapshot_to_bytes(snapshot),
    }
    added = insert(connection, decision_snapshots).values(**row)
    connection.execute(
        added.on_conflict_do_nothing(index_elements=[decision_snapshots.c.decision_id])
    )


def read_kept(connection: Connection, decision_id: int) -> Snapshot | None:
    """What a decision was made from; None when nothing was kept of it.

    Raises:
        ValueError: what was kept is damaged, or points to a look or a ring that is gone.
        ServerError: its ring is damaged.
    """
    query = select(decision_snapshots.c.body).where(decision_snapshots.c.decision_id == decision_id)
    body = connection.scalar(query)
    if body is None:
        return None
    snapshot, pointer = snapshot_from_bytes(body)
    if pointer is None:
        return snapshot
    return replace(snapshot, evidence=_evidence(connection, *pointer))


def snapshot_to_bytes(snapshot: Snapshot) -> bytes:
    """All of a snapshot but the evidence, of which the numbers of ring and look are kept."""
    evidence = snapshot.evidence
    limit_next = snapshot.limit_next
    value = {
        "format": FORMAT,
        "rollout": _rollout_json(snapshot.rollout),
        **{name: getattr(snapshot, name) for name in _PLAIN},
        "limit_next": None if limit_next is None else list(limit_next),
        "cohort": _columns(snapshot.cohort, _VIEW),
        "served": _columns([device.served for device in snapshot.cohort], _SERVED),
        "control": asdict(snapshot.control),
        "checks": [asdict(answer) for answer in snapshot.checks],
        "strata": dict(snapshot.strata),
        "evidence": None if evidence is None else [evidence.ring_id, evidence.number],
    }
    return zlib.compress(json.dumps(value, sort_keys=True, separators=(",", ":")).encode(), 6)


def snapshot_from_bytes(data: bytes) -> tuple[Snapshot, tuple[int, int] | None]:
    """A snapshot without its evidence, and the numbers of ring and look that the evidence is.

    Raises:
        ValueError: not a snapshot of this version, or damaged.
    """
    try:
        value = json.loads(zlib.decompress(data))
        found = value["format"]
    except (zlib.error, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the stored snapshot is damaged: {error}") from error
    if found != FORMAT:
        raise ValueError(f"the stored snapshot has format {found}; this version reads {FORMAT}")
    try:
        return _snapshot(value)
    except (
        KeyError,
        TypeError,
        ValueError,
        FleetError,
    ) as error:  # a spec that nobody could ask for
        raise ValueError(f"the stored snapshot is damaged: {error}") from error


def _snapshot(value: Mapping[str, Any]) -> tuple[Snapshot, tuple[int, int] | None]:
    control = value["control"]
    served = [Served(**row) for row in _rows(value["served"])]
    cohort = tuple(
        DeviceView(**row, served=one)
        for row, one in zip(_rows(value["cohort"]), served, strict=True)
    )
    limit_next = value["limit_next"]
    snapshot = Snapshot(
        rollout=_rollout(value["rollout"]),
        cohort=cohort,
        control=ControlArm(**{**control, "served": Served(**control["served"])}),
        **{name: value[name] for name in _PLAIN},
        limit_next=None if limit_next is None else (limit_next[0], limit_next[1]),
        # What was kept before there were checks, or strata, has none.
        checks=tuple(CheckAnswer(**answer) for answer in value.get("checks", [])),
        strata=value.get("strata", {}),
    )
    pointer = value["evidence"]
    return snapshot, None if pointer is None else (pointer[0], pointer[1])


def _evidence(connection: Connection, ring_id: int, number: int) -> Evidence:
    digest = connection.scalar(select(rings.c.hashes).where(rings.c.id == ring_id))
    if digest is None:
        raise ValueError(f"ring {ring_id} is no longer kept")
    frozen = read_ring(connection, ring_id, digest["body"])
    if number == 0:
        return Evidence(ring_id, frozen, next_look_s=next_look_s(frozen.ring, None))
    query = select(looks.c.k, looks.c.at_s, looks.c.result)
    row = connection.execute(
        query.where(looks.c.ring_id == ring_id, looks.c.number == number)
    ).first()
    if row is None:
        raise ValueError(f"look {number} of ring {ring_id} is no longer kept")
    return Evidence(
        ring_id=ring_id,
        frozen=frozen,
        number=number,
        result=result_from_json(row.result),
        next_look_s=next_look_s(frozen.ring, (row.k, row.at_s)),
    )


def _columns(rows: Any, names: tuple[str, ...]) -> dict[str, list[Any]]:
    return {name: [getattr(row, name) for row in rows] for name in names}


def _rows(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    names = list(columns)
    return [
        dict(zip(names, values, strict=True))
        for values in zip(*(columns[name] for name in names), strict=True)
    ]


def _rollout_json(rollout: Rollout) -> dict[str, Any]:
    plain = {field.name: getattr(rollout, field.name) for field in fields(rollout)}
    kept = {"spec": rollout.spec.to_json(), "state": str(rollout.state)}
    return plain | kept | {"details": dict(rollout.details)}


def _rollout(value: Mapping[str, Any]) -> Rollout:
    spec, state = parse_spec(value["spec"]), State(value["state"])
    return Rollout(**{**value, "spec": spec, "state": state})
