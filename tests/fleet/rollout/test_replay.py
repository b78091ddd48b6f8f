"""An audit makes every look and every decision again, and finds what was changed since."""

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete, select, update

from fleet.rollout import records
from fleet.rollout.controller import Step, decide
from fleet.rollout.frozen import FrozenRing
from fleet.rollout.gate.evidence import hashes, record
from fleet.rollout.gate.look import look
from fleet.rollout.gate.ring import Counts, Spending
from fleet.rollout.gate.ring import State as LookState
from fleet.rollout.history import History
from fleet.rollout.looks import unpack_counts
from fleet.rollout.preserved import read_kept, snapshot_from_bytes, snapshot_to_bytes
from fleet.rollout.replay import Audit, audit
from fleet.rollout.snapshot import Served
from fleet.rollout.states import State
from fleet.store.tables import decision_snapshots, decisions, histories, looks, rings
from tests.fleet.rollout.rollout_builders import good, refused, snapshot
from tests.support.evidence_fleet import EvidenceFleet, store_like

GUARDS = {"max_error_rate": 0.9, "metrics": {"error_rate": 1.5}, "silence_s": 300.0}
Change = Callable[[Any], None]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> EvidenceFleet:
    """One stage passed, the next one rolled back, each decision kept."""
    folder = tmp_path_factory.mktemp("replay")
    fleet = EvidenceFleet(store_like(folder / "template.db", folder / "told"), size=150)
    fleet.history(hours=1, windows_per_hour=2)
    fleet.start(2000, 6000, 10_000, bake_s=240.0, guards=GUARDS)
    fleet.tick()
    fleet.install()
    fleet.minutes(4)
    fleet.factor = {"cpu": 9.0}
    fleet.install()
    fleet.minutes(6)
    assert fleet.rollout().state is State.ROLLED_BACK
    return fleet


def audited(fleet: EvidenceFleet) -> Audit:
    with fleet.store.read() as connection:
        return audit(connection, records.get_rollout(connection, "r1"))


def changed(fleet: EvidenceFleet, change: Change) -> Audit:
    """The audit of a database in which something was changed; the change is taken back."""
    found: list[Audit] = []

    class Undo(Exception):
        pass

    def work() -> None:
        with fleet.store.begin() as connection:
            change(connection)
            found.append(audit(connection, records.get_rollout(connection, "r1")))
            raise Undo

    with pytest.raises(Undo):
        work()
    return found[0]


def test_everything_comes_out_as_it_was_recorded(told: EvidenceFleet) -> None:
    found = audited(told)
    assert found.equal
    assert found.missing == 0
    assert len(found.looks) == 3
    assert [one.what for one in found.starts] == ["beginning of stage 1", "beginning of stage 2"]
    assert {one.how for one in found.starts} == {"replayed"}
    how = {one.what.partition(": ")[2]: one.how for one in found.decisions}
    assert how["advance"] == how["rollback"] == "replayed"
    assert json.loads(json.dumps(found.to_json()))["equal"] is True


def first_look(column: Any) -> Any:
    return select(column).order_by(looks.c.ring_id, looks.c.number).limit(1)


def fake_counts(connection: Any) -> None:
    """The counts of one look in place of another's."""
    bodies = connection.scalars(select(looks.c.counts).order_by(looks.c.ring_id, looks.c.number))
    first, second = list(bodies)[:2]
    connection.execute(update(looks).where(looks.c.counts == first).values(counts=second))


def fake_result(connection: Any) -> None:
    result = connection.scalar(first_look(looks.c.result))
    connection.execute(
        update(looks)
        .where(
            looks.c.ring_id == connection.scalar(first_look(looks.c.ring_id)), looks.c.number == 1
        )
        .values(result={**result, "p_value": 0.5})
    )


def lost_look(connection: Any) -> None:
    connection.execute(delete(looks).where(looks.c.number == 1))


def fake_reason(connection: Any) -> None:
    connection.execute(
        update(decisions).where(decisions.c.action == "advance").values(reason="because")
    )


def fake_evidence(connection: Any) -> None:
    row = connection.execute(select(decisions).where(decisions.c.action == "advance")).one()
    cohort = {**row.evidence["cohort"], "failures": 0}
    evidence = {**row.evidence, "cohort": cohort}
    connection.execute(update(decisions).where(decisions.c.id == row.id).values(evidence=evidence))


def fake_hold(connection: Any) -> None:
    connection.execute(update(decisions).where(decisions.c.action == "hold").values(verdict="pass"))


def fake_state_before_the_first(connection: Any) -> None:
    """All virtual cohorts but a few are gone when the stage begins, and everything fits to that."""
    ring_id = connection.scalar(select(looks.c.ring_id).order_by(looks.c.ring_id.desc()).limit(1))
    row = connection.execute(select(looks).where(looks.c.ring_id == ring_id)).one()
    found = connection.execute(select(rings).where(rings.c.id == ring_id)).one()
    ring, counts = FrozenRing.from_bytes(found.body).ring, unpack_counts(row.counts)[-1]
    living = np.zeros(ring.virtual, dtype=np.bool_)
    living[:100] = True
    spent = {name: Spending(10, np.packbits(living).tobytes()) for name in ring.tests}
    before = LookState(0, spent)
    outcome = look(ring, before, counts, row.k)
    told = record(ring, before, counts, outcome, row.evidence["code"])
    forged = {"state": outcome[1].to_bytes(), "evidence": told, "result": told["result"]}
    connection.execute(update(looks).where(looks.c.ring_id == ring_id).values(**forged))


def look_too_early(connection: Any) -> None:
    connection.execute(update(looks).where(looks.c.number == 1).values(at_s=looks.c.at_s - 3600.0))


def _fake_ring(connection: Any, change: Callable[[FrozenRing], FrozenRing]) -> None:
    """Another ring in place of the first, its hashes with it."""
    row = connection.execute(select(rings).order_by(rings.c.id).limit(1)).one()
    frozen = change(FrozenRing.from_bytes(row.body))
    body, parts = frozen.to_bytes(), hashes(frozen.ring, Counts())
    parts["body"] = hashlib.sha256(body).hexdigest()
    values = {"body": body, "hashes": parts}
    connection.execute(update(rings).where(rings.c.id == row.id).values(**values))


def fake_seed(connection: Any) -> None:
    _fake_ring(connection, lambda old: replace(old, ring=replace(old.ring, seed=b"7" * 32)))


def fake_cohort(connection: Any) -> None:
    _fake_ring(
        connection, lambda old: replace(old, ring=replace(old.ring, cohort=~old.ring.cohort))
    )


def fake_alpha(connection: Any) -> None:
    _fake_ring(connection, lambda old: replace(old, ring=replace(old.ring, alpha=0.05)))


def fake_held(connection: Any) -> None:
    _fake_ring(connection, lambda old: replace(old, held=("rss",)))


def fake_body(connection: Any) -> None:
    """Another ring in the place of the first, which is known by its hash."""
    bodies = connection.execute(select(rings.c.id, rings.c.body).order_by(rings.c.id)).all()
    connection.execute(update(rings).where(rings.c.id == bodies[0].id).values(body=bodies[1].body))


def fake_history(connection: Any) -> None:
    """Devices that were bad before: what is worse now would look like what was."""
    row = connection.execute(select(histories)).one()
    past = History.from_bytes(row.body)
    bad = {name: values * 9 for name, values in past.counts.bad.items()}
    body = replace(past, counts=replace(past.counts, bad=bad)).to_bytes()
    connection.execute(update(histories).values(body=body))


def damaged_ring(connection: Any) -> None:
    values = {"body": b"nothing", "hashes": {"body": hashlib.sha256(b"nothing").hexdigest()}}
    connection.execute(update(rings).values(**values))


def damaged(connection: Any) -> None:
    connection.execute(update(looks).where(looks.c.number == 1).values(counts=b"nothing"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (fake_counts, "hashes.counts: recorded"),
        (fake_result, "the result beside the record is another one"),
        (lost_look, "did not begin with the state that the look before it left"),
        (fake_reason, 'reason: recorded "because"'),
        (fake_evidence, "evidence cohort: recorded"),
        (fake_hold, "verdict: recorded pass"),
        (fake_state_before_the_first, "did not begin with nothing spent"),
        (look_too_early, "look 1 was not due then"),
        (fake_seed, "seed: recorded is not what follows from the rollout"),
        (fake_cohort, "cohort: recorded is not what follows from the rollout"),
        (fake_alpha, "alpha: recorded 0.05, the stage has 0.01 to spend"),
        (fake_held, "held: recorded is not what follows from the rollout"),
        (fake_body, "body: recorded sha256"),
        (fake_history, "baseline: recorded is not what follows from the rollout"),
        (damaged_ring, "the stored frozen ring is damaged"),
        (damaged, "the stored counts are damaged"),
    ],
)
def test_what_was_changed_since_is_found(told: EvidenceFleet, change: Change, says: str) -> None:
    found = changed(told, change)
    assert not found.equal
    differences = [
        text
        for one in (found.trail, *found.starts, *found.looks, *found.decisions)
        for text in one.differences
    ]
    assert any(says in text for text in differences), differences


def test_a_first_look_that_began_elsewhere_is_all_that_is_told(told: EvidenceFleet) -> None:
    """So it is the beginning that gives it away, and nothing else would."""
    found = changed(told, fake_state_before_the_first)
    differences = [text for one in (*found.starts, *found.looks) for text in one.differences]
    assert differences == ["it is the first, and did not begin with nothing spent"]


def test_what_is_gone_is_missing_and_not_equal_or_wrong(told: EvidenceFleet) -> None:
    def gone(connection: Any) -> None:
        connection.execute(delete(rings))
        connection.execute(delete(decision_snapshots))

    found = changed(told, gone)
    changes = [one for one in found.decisions if not one.what.endswith(": hold")]
    assert len(changes) == 2
    assert found.missing == len(found.looks) + len(changes)
    assert found.starts == ()
    assert {one.how for one in found.decisions if one not in changes} == {"combined"}
    assert found.equal


def test_a_beginning_without_a_history_is_missing(told: EvidenceFleet) -> None:
    found = changed(told, lambda connection: connection.execute(delete(histories)))
    assert {one.how for one in found.starts} == {"missing"}
    assert found.missing == len(found.starts) == 2


def test_a_snapshot_reads_back_to_the_same_bytes() -> None:
    odd = replace(good(3), committed_s=None, served=Served(requests=7, last_window_s=0.1 + 0.2))
    kinds = {"cam/cpu": 20, "cam/cuda": 8}
    taken = snapshot(
        [good(1, stratum="cam/cpu"), refused(2), odd], limit_next=(1234.5, 5000), limit_bp=100,
        strata=kinds,
    )  # fmt: skip
    again, pointer = snapshot_from_bytes(snapshot_to_bytes(taken))
    assert again == taken
    assert pointer is None
    assert snapshot_to_bytes(again) == snapshot_to_bytes(taken)
    with pytest.raises(ValueError, match="damaged"):
        snapshot_from_bytes(b"nothing")


def test_what_was_kept_before_strata_were_told_apart_is_decided_as_it_was() -> None:
    """Everything went back then."""
    failing = [replace(refused(number), stratum="cam/cuda") for number in range(10)]
    fine = [good(number, stratum="cam/cpu") for number in range(10, 40)]
    now = snapshot([*failing, *fine], strata={"cam/cpu": 300, "cam/cuda": 100})
    kept = json.loads(zlib.decompress(snapshot_to_bytes(now)))
    del kept["strata"], kept["cohort"]["stratum"]
    old, _ = snapshot_from_bytes(zlib.compress(json.dumps(kept).encode()))
    today, then = decide(now), decide(old)
    assert today is not None
    assert then is not None
    assert (today.step, then.step) == (Step.STOP_STRATUM, Step.ROLLBACK)
    assert "by_stratum" not in json.dumps(then.evidence)
    assert [
        one["evidence"]["alarm_at"]
        for one in then.evidence["findings"]
        if one["guard"] == "outcomes"
    ] == [400.0]


def test_a_snapshot_points_to_its_look(told: EvidenceFleet) -> None:
    with told.store.read() as connection:
        query = select(decision_snapshots.c.decision_id).order_by(decision_snapshots.c.decision_id)
        kept = [read_kept(connection, one) for one in connection.scalars(query)]
        assert read_kept(connection, 10_000) is None
    assert len(kept) == 2
    assert kept[0] is not None
    assert kept[0].evidence is not None
    assert kept[0].evidence.result is not None
