"""An audit makes every look and every decision again, and finds what was changed since."""

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from fleet.rollout.controller import Step, decide
from fleet.rollout.preserved import read_kept, snapshot_from_bytes, snapshot_to_bytes
from fleet.rollout.replay import Audit, audit
from fleet.rollout.snapshot import Served
from fleet.rollout.states import State
from fleet.store.tables import decision_snapshots, decisions, looks, rings
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
        return audit(connection, "r1")


def changed(fleet: EvidenceFleet, change: Change) -> Audit:
    """The audit of a database in which something was changed; the change is taken back."""
    found: list[Audit] = []

    class Undo(Exception):
        pass

    def work() -> None:
        with fleet.store.begin() as connection:
            change(connection)
            found.append(audit(connection, "r1"))
            raise Undo

    with pytest.raises(Undo):
        work()
    return found[0]


def test_everything_comes_out_as_it_was_recorded(told: EvidenceFleet) -> None:
    found = audited(told)
    assert found.equal
    assert found.missing == 0
    assert len(found.looks) == 3
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
        (damaged, "the stored counts are damaged"),
    ],
)
def test_what_was_changed_since_is_found(told: EvidenceFleet, change: Change, says: str) -> None:
    found = changed(told, change)
    assert not found.equal
    differences = [text for one in (*found.looks, *found.decisions) for text in one.differences]
    assert any(says in text for text in differences), differences


def test_what_is_gone_is_missing_and_not_equal_or_wrong(told: EvidenceFleet) -> None:
    def gone(connection: Any) -> None:
        connection.execute(delete(rings))
        connection.execute(delete(decision_snapshots))

    found = changed(told, gone)
    assert found.missing == len(found.looks)
    assert {one.how for one in found.decisions} == {"combined"}
    assert found.equal


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
