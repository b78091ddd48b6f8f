"""The trail is walked from its first decision to where the rollout is: what was added, taken out or moved is found."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update

from fleet.rollout import records
from fleet.rollout.changes import OPERATOR
from fleet.rollout.frozen import FrozenRing
from fleet.rollout.gate.evidence import hashes
from fleet.rollout.gate.ring import Counts
from fleet.rollout.preserved import snapshot_from_bytes, snapshot_to_bytes
from fleet.rollout.replay import Audit, audit
from fleet.rollout.states import Event, State
from fleet.store.tables import (
    decision_snapshots,
    decisions,
    histories,
    looks,
    rings,
    rollouts,
)
from tests.fleet.rollout.test_replay import GUARDS, changed
from tests.support.evidence_fleet import EvidenceFleet, store_like

Work = Callable[[Any], None]


def asks(fleet: EvidenceFleet, event: Event) -> None:
    """An operator does something to the rollout."""
    fleet.now_s += 1
    with fleet.store.begin() as connection:
        rollout = records.get_rollout(connection, "r1")
        change = records.Change(event, OPERATOR, f"{event} by an operator", fleet.now_s)
        records.apply_change(connection, rollout, change)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> EvidenceFleet:
    """A stage that was begun three times, looks that were missed, and the stage after it, which is under way."""
    folder = tmp_path_factory.mktemp("trail")
    fleet = EvidenceFleet(store_like(folder / "template.db", folder / "told"), size=120)
    fleet.history(hours=1, windows_per_hour=2)
    fleet.start(2000, 6000, 10_000, bake_s=300.0, guards=GUARDS)
    fleet.tick()
    fleet.install()
    for _ in range(2):
        fleet.minutes(3)
        asks(fleet, Event.PAUSE)
        asks(fleet, Event.RESUME)
    fleet.tick()
    for _ in range(3):  # nobody looks for three minutes
        fleet.now_s += 60
        fleet.report(fleet.ids)
    fleet.minutes(3)
    fleet.install()
    fleet.minutes(3)
    rollout = fleet.rollout()
    assert (rollout.state, rollout.stage) == (State.RUNNING, 1)
    return fleet


def differences(found: Audit) -> list[str]:
    parts = (found.trail, *found.starts, *found.looks, *found.decisions)
    return [text for one in parts for text in one.differences]


def test_a_stage_that_was_begun_again_and_looks_that_were_missed_are_equal(
    told: EvidenceFleet,
) -> None:
    found = changed(told, lambda _connection: None)
    assert differences(found) == []
    assert found.missing == 0
    assert [one.what for one in found.starts] == [
        "beginning of stage 1", "beginning of stage 1, run 2", "beginning of stage 1, run 3", "beginning of stage 2",
    ]  # fmt: skip
    assert {one.how for one in found.starts} == {"replayed"}
    with told.store.read() as connection:
        alphas = [
            FrozenRing.from_bytes(body).ring.alpha
            for body in connection.scalars(select(rings.c.body).order_by(rings.c.id))
        ]
        last = connection.execute(select(looks.c.k).order_by(looks.c.at_s)).scalars().all()
    assert alphas[0] == alphas[3] > alphas[1] > alphas[0] / 2 - 1e-12
    assert last.count(1) == 3, "a look that was missed is merged with the next"
    assert found.trail.what == f"the trail of {len(found.decisions) + 5} decisions"


def of(action: str) -> Any:
    return select(decisions.c.id).where(decisions.c.action == action).limit(1).scalar_subquery()


def setting(table: Any, where: Any = None, **values: Any) -> Work:
    def work(connection: Any) -> None:
        query = update(table).values(**values)
        assert connection.execute(query if where is None else query.where(where)).rowcount

    return work


def gone(action: str) -> Work:
    return lambda connection: connection.execute(
        delete(decisions).where(decisions.c.id == of(action))
    )


def invented(connection: Any) -> None:
    """An override that nobody asked for."""
    row = connection.execute(select(decisions).order_by(decisions.c.id.desc()).limit(1)).one()
    values = {**row._mapping, "id": row.id + 1, "action": "advance", "actor": "operator"}
    connection.execute(insert(decisions).values(**values | {"verdict": "", "evidence": {}}))


def ring_elsewhere(connection: Any) -> None:
    """The ring of a stage that began at another time, with everything that follows from it."""
    row = connection.execute(select(rings).order_by(rings.c.id.desc()).limit(1)).one()
    frozen = FrozenRing.from_bytes(row.body)
    frozen = replace(frozen, ring=replace(frozen.ring, started_s=frozen.ring.started_s - 60))
    body, parts = frozen.to_bytes(), hashes(frozen.ring, Counts())
    parts["body"] = hashlib.sha256(body).hexdigest()
    values = {"body": body, "hashes": parts, "started_s": row.started_s - 60}
    connection.execute(update(rings).where(rings.c.id == row.id).values(**values))


def richer_second_run(connection: Any) -> None:
    """The second run of the stage has what the first one had, as if nothing had been spent."""
    row = connection.execute(select(rings).where(rings.c.attempt == 1)).one()
    frozen = FrozenRing.from_bytes(row.body)
    frozen = replace(frozen, ring=replace(frozen.ring, alpha=0.01))
    body, parts = frozen.to_bytes(), hashes(frozen.ring, Counts())
    parts["body"] = hashlib.sha256(body).hexdigest()
    connection.execute(update(rings).where(rings.c.id == row.id).values(body=body, hashes=parts))


def first_run_gone(connection: Any) -> None:
    connection.execute(delete(rings).where(rings.c.attempt == 0, rings.c.stage == 0))


def snapshot_with(**changes: Any) -> Work:
    """The kept snapshot of the advance, with something else in its rollout."""

    def work(connection: Any) -> None:
        row = connection.execute(select(decision_snapshots)).one()
        kept, pointer = snapshot_from_bytes(row.body)
        rollout = replace(kept.rollout, **{
            name: value(kept.rollout) if callable(value) else value for name, value in changes.items()
        })  # fmt: skip
        forged = _Pointed(replace(kept, rollout=rollout), pointer)
        connection.execute(update(decision_snapshots).values(body=forged.to_bytes()))

    return work


class _Pointed:
    """A snapshot with the numbers of the ring and the look that it was decided by."""

    def __init__(self, snapshot: Any, pointer: Any) -> None:
        self.snapshot, self.pointer = snapshot, pointer

    def to_bytes(self) -> bytes:
        class Pointer:
            ring_id, number = self.pointer

        return snapshot_to_bytes(replace(self.snapshot, evidence=Pointer()))


def older_look(connection: Any) -> None:
    """The advance points to the look before the one it was decided by."""
    row = connection.execute(select(decision_snapshots)).one()
    kept, pointer = snapshot_from_bytes(row.body)
    assert pointer is not None
    assert pointer[1] > 1
    forged = _Pointed(kept, (pointer[0], pointer[1] - 1))
    connection.execute(update(decision_snapshots).values(body=forged.to_bytes()))


def other_stage(connection: Any) -> None:
    row = connection.execute(select(decision_snapshots)).one()
    kept, pointer = snapshot_from_bytes(row.body)
    assert pointer is not None
    first = connection.scalar(select(rings.c.id).order_by(rings.c.id).limit(1))
    forged = _Pointed(kept, (first, 1))
    connection.execute(update(decision_snapshots).values(body=forged.to_bytes()))


def lenient(rollout: Any) -> Any:
    return replace(rollout.spec, guards=replace(rollout.spec.guards, max_error_rate=0.99))


def nonsense(rollout: Any) -> Any:
    return replace(rollout.spec, guards=replace(rollout.spec.guards, max_error_rate=7.0))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (setting(rollouts, state="promoted"), "and the rollout is promoted in stage 2"),
        (setting(rollouts, stage=2), "and the rollout is running in stage 3"),
        (setting(rollouts, stage_started_s=1.0), "begun at 1.000"),
        (gone("start"), "begins running, and what is before it left the rollout unmade"),
        (gone("pause"), "(resume) begins paused, and what is before it left the rollout running"),
        (gone("advance"), "is told of stage 2, and stage 1 follows"),
        (invented, "and the rollout is running in stage 2"),
        (setting(decisions, decisions.c.id == of("hold"), action="bless"), "cannot make running"),
        (setting(decisions, decisions.c.id == of("pause"), to_state="promoted"), "cannot make"),
        (setting(decisions, decisions.c.id == of("hold"), actor="eve"), "only the controller holds"),
        (setting(decisions, decisions.c.id == of("resume"), at_s=1.0), "no decision began stage 1"),
        (setting(decisions, decisions.c.id == of("hold"), reason="holding: patience"), "reason: re"),
        (setting(decisions, decisions.c.id == of("hold"), evidence={"findings": [1]}), "damaged"),
        (ring_elsewhere, "no decision began stage 2 then"),
        (richer_second_run, "alpha: recorded 0.01, the stage has 0.00"),
        (first_run_gone, "run 1 of the stage is gone, and run 2 follows from it"),
        (snapshot_with(spec=lenient), "snapshot spec: not that of the rollout"),
        (snapshot_with(bundle="bundles/cam/digits-1"), "snapshot bundle: not that of the rollout"),
        (snapshot_with(details={"approved": [1]}), "snapshot approved: the rollout has never"),
        (snapshot_with(stage_started_s=1.0), "snapshot: no decision began stage 1 then"),
        (snapshot_with(stage=1), "snapshot: running in stage 2 is not what was decided about"),
        (older_look, "was the newest"),
        (snapshot_with(spec=nonsense), "the stored snapshot is damaged"),
        (other_stage, "snapshot: its comparison is of another stage"),
        (setting(looks, k=9), "the number beside the record is another one"),
        (setting(looks, state=b""), "the state beside the record is another one"),
    ],
)  # fmt: skip
def test_what_was_changed_since_is_found(told: EvidenceFleet, change: Work, says: str) -> None:
    found = changed(told, change)
    assert not found.equal
    assert any(says in text for text in differences(found)), differences(found)


def test_a_trail_of_nothing_leads_nowhere(told: EvidenceFleet) -> None:
    with told.store.read() as connection:
        found = audit(connection, replace(records.get_rollout(connection, "r1"), id="r9"))
    assert found.trail.differences == (
        "the trail leads to nowhere in stage 1, begun at 0.000, and the rollout is running in stage 2, begun at "
        f"{told.rollout().stage_started_s:.3f}",
    )


def other(value: Any) -> list[Any]:
    """Values that are not this one, of its kind and of none."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value - 1_000_000, None]
    if isinstance(value, bytes):
        return [value[:-1] + bytes([value[-1] ^ 1]), b""]
    if isinstance(value, dict):
        changed_ones = [{**value, name: None} for name in list(value)[:1]]
        return [*changed_ones, {}]
    if isinstance(value, list):
        return [[*value, None], []] if value else [[None]]
    return [f"{value}x", ""] if value else ["x"]


UNTOLD = {
    (looks, "evidence.code"),  # which version decided is for people, and not computed
    (
        looks,
        "rollout_id",
    ),  # of another rollout it is missed by the look after it; the last one by its decision
    (
        decisions,
        "rollout_id of a hold",
    ),  # it changed nothing, so a hold that is taken out leaves no gap
    (decisions, "at_s"),  # of a hold: when it was told, to the moment, follows from nothing
    (decision_snapshots, "rollout_id"),
}


def records_of(connection: Any) -> list[tuple[Any, Any, str, list[Any]]]:
    """Every field of one record of each kind of evidence: table, which record, field, what is put in its place."""
    found: list[tuple[Any, Any, str, list[Any]]] = []
    last_look = select(looks).order_by(looks.c.at_s.desc()).limit(1)
    row = connection.execute(last_look).one()
    where = (looks.c.ring_id == row.ring_id) & (looks.c.number == row.number)
    for name in ("stage", "k", "at_s", "state", "result", "counts"):
        values = [one for one in other(getattr(row, name)) if one is not None]
        found.append((looks, where, name, values))
    for name, value in row.evidence.items():
        without = {key: kept for key, kept in row.evidence.items() if key != name}
        put = [{**row.evidence, name: one} for one in other(value)]
        found.append((looks, where, f"evidence.{name}", [*put, without]))
    for name, value in row.result.items():
        put = [{**row.result, name: one} for one in other(value)]
        found.append((looks, where, f"result.{name}", put))
    row = connection.execute(select(rings).where(rings.c.attempt == 1)).one()
    for name in ("rollout_id", "stage", "attempt", "started_s", "body", "hashes"):
        values = [one for one in other(getattr(row, name)) if one is not None]
        found.append((rings, rings.c.id == row.id, name, values))
    row = connection.execute(select(decisions).where(decisions.c.id == of("advance"))).one()
    for name in (
        "rollout_id",
        "actor",
        "action",
        "from_state",
        "to_state",
        "stage",
        "verdict",
        "reason",
        "evidence",
    ):
        values = [one for one in other(getattr(row, name)) if one is not None]
        found.append((decisions, decisions.c.id == row.id, name, values))
    for name, value in row.evidence.items():
        put = [{**row.evidence, name: one} for one in other(value)]
        found.append((decisions, decisions.c.id == row.id, f"evidence.{name}", put))
    row = connection.execute(select(decisions).where(decisions.c.id == of("hold"))).one()
    for name in (
        "rollout_id",
        "actor",
        "action",
        "from_state",
        "to_state",
        "stage",
        "verdict",
        "reason",
    ):
        values = [one for one in other(getattr(row, name)) if one is not None]
        found.append((decisions, decisions.c.id == row.id, f"{name} of a hold", values))
    row = connection.execute(select(decision_snapshots)).one()
    same = decision_snapshots.c.decision_id == row.decision_id
    found.append((decision_snapshots, same, "decision_id", [row.decision_id + 1000]))
    found.append((decision_snapshots, same, "body", other(row.body)))
    row = connection.execute(select(histories)).one()
    found.append((histories, histories.c.rollout_id == "r1", "body", other(row.body)))
    return found


def test_every_field_of_every_kind_of_evidence_is_missed_when_it_is_another(
    told: EvidenceFleet,
) -> None:
    with told.store.read() as connection:
        kinds = records_of(connection)
    equal: list[str] = []
    for table, where, field, values in kinds:
        column = field.partition(".")[0].partition(" ")[0]
        for number, value in enumerate(values):
            found = changed(told, setting(table, where, **{column: value}))
            if found.equal and (table, field) not in UNTOLD:
                equal.append(f"{table.name}.{field}, {number}: {found.missing} missing")
    assert not equal, "\n".join(equal)
