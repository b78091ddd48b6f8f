"""``fleet rollout audit``: every beginning, look and decision made again, from what was kept of it.

Rules kept here: nothing is changed; the trail is walked from its first decision to where the rollout is; a ring is
frozen again from its rollout and its history, a look is taken again from its ring and its counts, a decision is made
again from its snapshot, and every difference is told in words, damage too; what can no longer be made again is said to
be missing, which is not the same as equal.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, func, select

from fleet.errors import ServerError
from fleet.rollout import audit as entries
from fleet.rollout.audit import Entry
from fleet.rollout.controller import Step, decide
from fleet.rollout.frozen import FrozenRing, due_look
from fleet.rollout.gate.door import Finding, combine
from fleet.rollout.gate.evidence import Look, replay
from fleet.rollout.gate.result import LookResult
from fleet.rollout.gate.ring import Counts, Ring, State
from fleet.rollout.gate.verdict import Verdict
from fleet.rollout.looks import take, unpack_counts
from fleet.rollout.preserved import read_kept
from fleet.rollout.record import Rollout
from fleet.rollout.ring_replay import check_ring
from fleet.rollout.snapshot import Snapshot
from fleet.rollout.stored_rings import read_ring
from fleet.rollout.trail_replay import Walked, foreign, walk
from fleet.store.tables import decision_snapshots, looks, rings

__all__ = ["Audit", "Checked", "audit"]

_PAGE: Final = 200
_MOST_SHOWN: Final = 20  # differences of one look or decision
_DAMAGE: Final = (
    KeyError,
    TypeError,
    AttributeError,
)  # parts that are not there, or are something else


@dataclass(frozen=True, slots=True)
class Checked:
    """One beginning of a stage, look or decision, made again. No ``differences``: it is equal, byte for byte.

    ``how``: ``replayed`` in full; ``combined``: of a hold only the findings are kept, and their
    reason and verdict are those recorded; ``walked``: the trail, from its first decision to where the rollout is;
    ``missing``: too little is kept to make it again.
    """

    what: str
    at_s: float
    how: str
    differences: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "what": self.what,
            "at_s": self.at_s,
            "how": self.how,
            "equal": not self.differences,
            "differences": list(self.differences),
        }


@dataclass(frozen=True, slots=True)
class Audit:
    """The trail as a whole, every beginning of a stage, every look and every decision of the controller, in order."""

    rollout_id: str
    trail: Checked
    starts: tuple[Checked, ...]
    looks: tuple[Checked, ...]
    decisions: tuple[Checked, ...]

    @property
    def equal(self) -> bool:
        """Whether everything came out as it was recorded."""
        return not any(one.differences for one in self._all)

    @property
    def missing(self) -> int:
        """How many could not be made again."""
        return sum(one.how == "missing" for one in self._all)

    @property
    def _all(self) -> tuple[Checked, ...]:
        return (self.trail, *self.starts, *self.looks, *self.decisions)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "rollout_id": self.rollout_id,
            "equal": self.equal,
            "missing": self.missing,
            "trail": self.trail.to_json(),
            "starts": [one.to_json() for one in self.starts],
            "looks": [one.to_json() for one in self.looks],
            "decisions": [one.to_json() for one in self.decisions],
        }


def audit(connection: Connection, rollout: Rollout) -> Audit:
    """Make every beginning of a stage, every look and every decision of a rollout again."""
    trail = _trail(connection, rollout.id)
    walked = walk(trail, rollout)
    kept = _kept(connection, rollout.id)
    decided = [one for one in trail if one.actor == entries.CONTROLLER or one.id in kept]
    lost = kept - {one.id for one in trail}
    walked.differences += [
        f"decision {one} is not in it, and its snapshot is" for one in sorted(lost)
    ]
    told = Checked(
        f"the trail of {len(trail)} decisions",
        rollout.created_s,
        "walked",
        tuple(walked.differences[:_MOST_SHOWN]),
    )
    begun = walked.begun
    return Audit(
        rollout.id,
        told,
        tuple(
            _check_start(connection, rollout, row, begun) for row in _rings(connection, rollout.id)
        ),
        tuple(_check_look(connection, row) for row in _looks(connection, rollout.id)),
        tuple(_check_decision(connection, rollout, entry, walked) for entry in decided),
    )


# --- beginnings -----------------------------------------------------------------------------------


def _rings(connection: Connection, rollout_id: str) -> Iterator[Row[Any]]:
    """One after another: the ring of a large fleet has some ten megabytes."""
    columns = rings.c
    keys = connection.scalars(
        select(columns.id).where(columns.rollout_id == rollout_id).order_by(columns.id)
    ).all()
    for ring_id in keys:
        yield connection.execute(select(rings).where(columns.id == ring_id)).one()


def _check_start(
    connection: Connection, rollout: Rollout, row: Row[Any], begun: Collection[tuple[int, float]]
) -> Checked:
    again = f", run {row.attempt + 1}" if row.attempt else ""
    what = f"beginning of stage {row.stage + 1}{again}"
    try:
        differences = check_ring(connection, rollout, row)
    except (ValueError, *_DAMAGE) as error:
        return Checked(what, row.started_s, "replayed", (_damaged(error),))
    if differences is None:
        return Checked(what, row.started_s, "missing")
    if (row.stage, row.started_s) not in begun:
        differences.append(f"no decision began stage {row.stage + 1} then")
    return Checked(what, row.started_s, "replayed", tuple(differences[:_MOST_SHOWN]))


# --- looks ----------------------------------------------------------------------------------------


def _looks(connection: Connection, rollout_id: str) -> Iterator[Row[Any]]:
    """One after another: the counts of one look can be large."""
    columns = looks.c
    keys = connection.execute(
        select(columns.ring_id, columns.number)
        .where(columns.rollout_id == rollout_id)
        .order_by(columns.at_s, columns.ring_id, columns.number)
    ).all()
    for ring_id, number in keys:
        query = select(looks).where(columns.ring_id == ring_id, columns.number == number)
        yield connection.execute(query).one()


def _check_look(connection: Connection, row: Row[Any]) -> Checked:
    what = f"look {row.k} of stage {row.stage + 1}"
    found = connection.scalar(select(rings.c.hashes).where(rings.c.id == row.ring_id))
    if found is None:
        return Checked(what, row.at_s, "missing")
    try:
        frozen = read_ring(connection, row.ring_id, found["body"])
        arms = unpack_counts(row.counts)
        differences = replay(row.evidence, frozen.ring, arms[-1], _again(frozen, arms))
        differences += _beside(row, frozen)
        differences += _broken_chain(connection, frozen, row)
    except (ValueError, ServerError, *_DAMAGE) as error:
        return Checked(what, row.at_s, "replayed", (_damaged(error),))
    return Checked(what, row.at_s, "replayed", tuple(differences[:_MOST_SHOWN]))


def _beside(row: Row[Any], frozen: FrozenRing) -> Iterator[str]:
    """What stands beside the record in its row is what the record says."""
    beside: dict[str, tuple[Any, Any]] = {
        "stage": (row.stage, frozen.ring.stage),
        "result": (row.result, row.evidence["result"]),
        "state": (row.state.hex(), row.evidence["state_after"]),
        "number": (row.k, row.evidence["look"]),
    }
    for name, (recorded, wanted) in beside.items():
        if recorded != wanted:
            yield f"the {name} beside the record is another one"


def _again(frozen: FrozenRing, arms: tuple[Counts, ...]) -> Look:
    """The look that was taken, as ``replay`` wants it."""

    def judge(_ring: Ring, before: State, _counts: Counts, k: int) -> tuple[LookResult, State]:
        return take(frozen, before, arms, k)

    return judge


def _broken_chain(connection: Connection, frozen: FrozenRing, row: Row[Any]) -> list[str]:
    """Each look begins with what the one before it left, the first with nothing spent, and when it was due."""
    query = select(looks.c.state, looks.c.k, looks.c.at_s).where(
        looks.c.ring_id == row.ring_id, looks.c.number == row.number - 1
    )
    before = connection.execute(query).first()
    last = None if before is None else (before.k, before.at_s)
    broken = []
    if row.number == 1 and row.evidence["state_before"] != State().to_bytes().hex():
        broken.append("it is the first, and did not begin with nothing spent")
    elif row.number > 1 and (before is None or before.state.hex() != row.evidence["state_before"]):
        broken.append("it did not begin with the state that the look before it left")
    if due_look(frozen.ring, last, row.at_s) != row.k:
        broken.append(f"look {row.k} was not due then")
    return broken


# --- decisions ------------------------------------------------------------------------------------


def _trail(connection: Connection, rollout_id: str) -> list[Entry]:
    """What was decided, by whomever, the oldest first."""
    found: list[Entry] = []
    before = 0
    while page := entries.trail(connection, rollout_id, _PAGE, before):
        found += page
        before = page[-1].id
    return found[::-1]


def _check_decision(
    connection: Connection, rollout: Rollout, entry: Entry, walked: Walked
) -> Checked:
    what = f"decision {entry.id}: {entry.action}"
    try:
        snapshot = read_kept(connection, entry.id)
    except (ValueError, ServerError, *_DAMAGE) as error:
        return Checked(what, entry.at_s, "replayed", (_damaged(error),))
    if snapshot is None:
        return _check_findings(entry, what)
    differences = foreign(snapshot, entry, rollout, walked)
    if entry.actor != entries.CONTROLLER:
        differences.append(f"actor: recorded {entry.actor}, and it was the controller's")
    differences += _older_look(connection, snapshot)
    action = decide(snapshot)
    if action is None:
        differences.append(f"the rollout was {snapshot.rollout.state}, so nothing would be decided")
        return Checked(what, entry.at_s, "replayed", tuple(differences[:_MOST_SHOWN]))
    pairs: list[tuple[str, Any, Any]] = [
        ("action", entry.action, str(action.step)),
        ("verdict", entry.verdict, str(action.verdict)),
        ("reason", entry.reason, action.reason),
    ]
    again = json.loads(json.dumps(action.evidence))
    pairs += [(f"evidence {key}", entry.evidence.get(key), again[key]) for key in sorted(again)]
    differences += [_differ(name, old, new) for name, old, new in pairs if old != new]
    return Checked(what, entry.at_s, "replayed", tuple(differences[:_MOST_SHOWN]))


def _older_look(connection: Connection, snapshot: Snapshot) -> list[str]:
    """Whether it was decided by another look than the newest there was."""
    evidence = snapshot.evidence
    if evidence is None:
        return []
    query = select(func.max(looks.c.number)).where(
        looks.c.ring_id == evidence.ring_id, looks.c.at_s <= snapshot.now_s
    )
    newest = connection.scalar(query) or 0
    if newest == evidence.number:
        return []
    return [f"look {evidence.number} of the stage was decided by, and look {newest} was the newest"]


def _kept(connection: Connection, rollout_id: str) -> set[int]:
    """The decisions of which a snapshot is kept."""
    column = decision_snapshots.c
    query = select(column.decision_id).where(column.rollout_id == rollout_id)
    return set(connection.scalars(query))


def _check_findings(entry: Entry, what: str) -> Checked:
    """Of a decision without a snapshot: the verdict and, of a hold, the reason that follow from its findings."""
    kept = entry.evidence.get("findings")
    try:
        findings = [
            Finding(one["guard"], Verdict(one["verdict"]), one["reason"]) for one in kept or ()
        ]
    except (KeyError, TypeError, ValueError) as error:
        return Checked(what, entry.at_s, "combined", (f"its findings are damaged: {error!r}",))
    if not findings:
        return Checked(what, entry.at_s, "missing")
    again = combine(findings)
    differences = []
    if entry.verdict != again.verdict:
        text = f"verdict: recorded {entry.verdict}, and the worst finding says otherwise"
        differences.append(text)
    if entry.action != Step.HOLD:  # it changed the rollout, and what it was made from is gone
        return Checked(what, entry.at_s, "missing", tuple(differences))
    pairs = [("reason", entry.reason, f"holding: {again.reason}")]
    held = [one.guard for one in findings if one.verdict is not Verdict.PASS]
    pairs.append(("blockers", str(entry.evidence.get("blockers", held)), str(held)))
    differences += [_differ(name, old, new) for name, old, new in pairs if old != new]
    return Checked(what, entry.at_s, "combined", tuple(differences))


def _damaged(error: Exception) -> str:
    """What is wrong with what is stored, in words."""
    return f"it is damaged: {error!r}" if isinstance(error, _DAMAGE) else str(error)


def _differ(name: str, old: Any, new: Any) -> str:
    shown = [json.dumps(value, sort_keys=True, default=str)[:200] for value in (old, new)]
    return f"{name}: recorded {shown[0]}, computed {shown[1]}"
