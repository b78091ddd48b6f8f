"""Looks: when one is due, from what, and that nothing is lost or spent twice."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, select

from fleet.rollout.controller import Step
from fleet.rollout.gate.ring import State as LookState
from fleet.rollout.looks import result_from_json
from fleet.rollout.states import State
from fleet.store.tables import decisions, looks
from tests.support.evidence_fleet import NEW, EvidenceFleet, store_like, window_row

Make = Callable[..., EvidenceFleet]
LOOSE = {  # so that the comparison decides
    "max_error_rate": 0.9, "max_over_latency_rate": None, "max_output_violation_rate": None,
    "metrics": {"error_rate": 1.5}, "silence_s": 300.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("looks")

    def made(size: int = 120, *, begun: bool = True, **changes: Any) -> EvidenceFleet:
        home = folder / str(len(list(folder.iterdir())))
        fleet = EvidenceFleet(store_like(folder / "template.db", home), size=size, **changes)
        fleet.history(hours=1, windows_per_hour=2)
        if begun:
            fleet.start(3000, 10_000, bake_s=600.0, guards=LOOSE)
            fleet.tick()
            fleet.install()
        return fleet

    return made


def stored(fleet: EvidenceFleet) -> list[Any]:
    with fleet.store.read() as connection:
        return list(connection.execute(select(looks).order_by(looks.c.number)))


@contextmanager
def statements(fleet: EvidenceFleet) -> Iterator[list[str]]:
    said: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        said.append(statement)

    event.listen(fleet.store.engine, "before_cursor_execute", note)
    yield said
    event.remove(fleet.store.engine, "before_cursor_execute", note)


def test_looks_are_taken_as_they_are_due(make: Make) -> None:
    fleet = make()
    fleet.minutes(5)
    assert [(row.number, row.k) for row in stored(fleet)] == [(1, 1), (2, 2), (3, 3)]
    assert [row.at_s - fleet.rollout().stage_started_s for row in stored(fleet)] == [180, 240, 300]


def test_missed_looks_are_merged(make: Make) -> None:
    fleet = make()
    fleet.minutes(3)
    for _ in range(4):
        fleet.now_s += 60
        fleet.report(fleet.ids)
    fleet.tick()
    assert [(row.number, row.k) for row in stored(fleet)] == [(1, 1), (2, 5)]
    assert LookState.from_bytes(stored(fleet)[1].state).looks == 5


def test_a_tick_at_which_nothing_is_due_reads_no_counts(make: Make) -> None:
    fleet = make()
    fleet.minutes(3)
    fleet.now_s += 5
    with statements(fleet) as said:
        fleet.tick()
    assert said
    assert not [one for one in said if "ring_counts" in one or "rings.body" in one]
    assert not [one for one in said if "looks.counts" in one or "looks.state" in one]
    assert not [one for one in said if "FROM windows" in one]
    assert len(stored(fleet)) == 1


def test_looking_without_deciding_keeps_nothing(make: Make) -> None:
    """As for somebody who asks how it goes."""
    fleet = make()
    fleet.now_s += 200
    one, other = fleet.snapshot().evidence, fleet.snapshot().evidence
    assert one is not None
    assert one.fresh is not None
    assert other is not None
    assert other.fresh == one.fresh
    assert stored(fleet) == []


def test_what_is_stored_of_a_look_reads_back(make: Make) -> None:
    fleet = make()
    fleet.minutes(2)
    fleet.now_s += 60
    fleet.report(fleet.ids)
    evidence = fleet.snapshot().evidence
    fleet.tick()
    assert evidence is not None
    [row] = stored(fleet)
    assert result_from_json(row.result) == evidence.result
    after = fleet.snapshot().evidence
    assert after is not None
    assert (after.result, after.fresh, after.number) == (evidence.result, None, 1)


def test_a_bundle_that_is_worse_is_rolled_back_by_the_comparison(make: Make) -> None:
    fleet = make(factor={"cpu": 8.0})
    action = fleet.minutes(6)
    assert fleet.rollout().state is State.ROLLED_BACK
    reason = fleet.rollout().reason
    assert "worse error_rate, failed requests" in reason
    assert "random groups of as many devices were as bad" in reason
    assert action is None or action.step is Step.ROLLBACK
    with fleet.store.read() as connection:
        last = connection.execute(select(decisions).order_by(decisions.c.id.desc())).first()
    assert last is not None
    assert last.at_s == stored(fleet)[-1].at_s


def test_a_bundle_that_changes_nothing_goes_on(make: Make) -> None:
    fleet = make()
    fleet.minutes(10)
    rollout = fleet.rollout()
    assert (rollout.state, rollout.stage) == (State.RUNNING, 1)
    assert "no difference between the arms at look 8 of 8" in rollout.reason


def test_a_bad_stratum_is_stopped_alone(make: Make) -> None:
    fleet = make(size=400, begun=False, providers=("cpu", "cuda"), factor={"cuda": 10.0})
    fleet.start(3000, 10_000, bake_s=600.0, guards=LOOSE)
    fleet.tick()
    fleet.install()
    fleet.minutes(6)
    rollout = fleet.rollout()
    assert rollout.state is State.RUNNING
    assert rollout.stopped == ("cam/cuda",), rollout.reason
    with fleet.store.read() as connection:
        query = select(decisions.c.reason).where(decisions.c.action == "stop_stratum")
        [reason] = connection.scalars(query)
    assert "cam/cuda" in reason
    assert all(device.device_id in fleet.ids[::2] for device in fleet.snapshot().cohort)


def test_both_arms_on_each_device_are_compared_in_pairs(make: Make) -> None:
    fleet = make(size=60, begun=False)
    stages = [
        {"percent_bp": 9000, "bake_s": 600.0, "kind": "ab", "traffic_bp": 5000},
        {"percent_bp": 10_000, "bake_s": 600.0},
    ]
    fleet.start(strategy="ab", stages=stages, guards=LOOSE)
    fleet.tick()
    for _ in range(4):
        fleet.now_s += 60
        fleet.report(fleet.ids)
        arm = [
            window_row(
                one, fleet.now_s, role="arm", manifest_sha256=NEW, rollout_id="r1",
                failures=9, seq=int(fleet.now_s) * 100,
            )
            for one in fleet.cohort()
        ]  # fmt: skip
        with fleet.store.begin() as connection:
            fleet.report_in(connection, arm)
        fleet.tick()
    assert fleet.rollout().state is State.ROLLED_BACK
    assert "worse error_rate" in fleet.rollout().reason
    result = result_from_json(stored(fleet)[-1].result)
    assert result.canaries == len(fleet.cohort())


@pytest.mark.parametrize("killed_at", [1, 3])
def test_a_restart_in_the_middle_of_a_stage_changes_nothing(make: Make, killed_at: int) -> None:
    """The look is computed and the process dies before the transaction; then it is asked again."""
    whole, broken = make(seed=7), make(seed=7)
    for minute in range(5):
        for fleet in (whole, broken):
            fleet.now_s += 60
            fleet.report(fleet.ids)
        whole.tick()
        if minute == killed_at:
            broken.snapshot()
            broken.store.close()
        broken.tick()
    one, other = stored(whole), stored(broken)
    assert [row.state for row in one] == [row.state for row in other]
    assert [row.evidence for row in one] == [row.evidence for row in other]
