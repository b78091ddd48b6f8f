"""The fleet's own gate over rings of virtual devices: the same functions, fed by the window."""

import numpy as np
import pytest

from fleet.rollout.gate.opening import RingPlan
from fleet.rollout.gate.verdict import Verdict
from simulator.virtual import Candidate, Population, Setting, VirtualWorld
from simulator.virtual.ours import GateOverRing, device_ids

COUNT = 600
CANARIES = np.arange(COUNT) < 30


def ring(candidate: Candidate, metrics: tuple[str, ...] = ("error_rate",), **population: object):
    """A ring of 30 devices among 600 in a world with this candidate."""
    world = VirtualWorld(Setting(Population(**population), candidate), COUNT, 11)
    plan = RingPlan("r1", 0, 3, 0.0, 900.0, 500, metrics)
    kinds = ["edge/cpu"] * COUNT
    gate = GateOverRing(plan, CANARIES, kinds, world.history())
    world.set_pace(np.arange(COUNT) < 60)
    world.deploy(np.flatnonzero(CANARIES))
    return world, gate


def verdicts(world: VirtualWorld, gate: GateOverRing, looks: int) -> list[str]:
    found = []
    for number, at_s in enumerate(gate.looks_s[:looks], 1):
        gate.add(world.advance(at_s)[0])
        found.append(str(gate.look(number).verdict))
    return found


def test_ids_sort_by_number():
    assert list(device_ids(1200)) == sorted(device_ids(1200))


def test_a_total_failure_fails_at_the_first_look():
    assert verdicts(*ring(Candidate(error_floor=1.0)), looks=1) == ["fail"]


def test_a_bundle_that_changes_nothing_passes_every_look():
    world, gate = ring(Candidate())
    assert set(verdicts(world, gate, len(gate.looks_s))) == {"pass"}


@pytest.mark.parametrize(
    ("metric", "candidate", "population"),
    [
        ("over_latency_rate", Candidate(slow_factor=8.0), {"slow_rate": 0.02}),
        ("feedback_error_rate", Candidate(wrong_factor=8.0), {"feedback_share": 0.5}),
        ("output_drift", Candidate(drift_factor=5.0), {"output_drift": 0.1}),
    ],
)
def test_what_shows_in_another_metric_fails_there(metric, candidate, population):
    world, gate = ring(candidate, ("error_rate", metric), **population)
    result = None
    for number, at_s in enumerate(gate.looks_s, 1):
        gate.add(world.advance(at_s)[0])
        result = gate.look(number)
        if result.verdict is Verdict.FAIL:
            break
    assert result is not None
    assert (result.verdict, result.driver) == (Verdict.FAIL, metric)


def test_nothing_reported_is_a_hold():
    _, gate = ring(Candidate())
    assert gate.look(1).verdict is Verdict.HOLD


def test_control_that_was_not_drawn_into_the_pool_is_left_out():
    count = 2600
    cohort = np.arange(count) < 26
    world = VirtualWorld(Setting(), count, 3)
    plan = RingPlan("r1", 0, 1, 0.0, 900.0, 100, ("error_rate",))
    gate = GateOverRing(plan, cohort, ["edge/cpu"] * count, world.history())
    assert gate.ring.size == 2000
    gate.add(world.advance(150.0)[0])
    result = gate.look(1)
    drawn = result.metrics[0].cohort.devices + result.metrics[0].control.devices
    assert 0 < drawn <= 2000
