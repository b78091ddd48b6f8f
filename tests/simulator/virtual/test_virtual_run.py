"""Whole rollouts in virtual worlds: what the fleet's own controller makes of what devices report."""

import asyncio
from dataclasses import replace

import pytest

from simulator.errors import ScenarioError
from simulator.scenario import Scenario
from simulator.virtual.run import VirtualOutcome, run_virtual
from tests.simulator.virtual.virtual_scenarios import small


def ended(scenario: Scenario) -> VirtualOutcome:
    return asyncio.run(run_virtual(scenario))


@pytest.fixture(scope="module")
def good() -> VirtualOutcome:
    return ended(small())


def test_a_bundle_that_changes_nothing_reaches_everybody(good):
    assert (good.state, good.exposed, good.serving) == ("promoted", 120, 120)
    assert [one.action for one in good.decisions if one.action != "hold"] == [
        "start",
        "advance",
        "promote",
    ]
    assert 240.0 <= good.after_s < 600.0
    assert 0.005 < good.failures / good.requests < 0.015
    assert good.reports > 120 * 6


def test_the_same_seed_ends_the_same_way(good):
    assert replace(ended(small()), cpu_s=good.cpu_s) == good


def test_a_total_failure_is_taken_back_from_the_first_stage():
    heard: list[tuple[float, str]] = []
    found = asyncio.run(
        run_virtual(small("error_floor = 1.0"), lambda at, one: heard.append((at, str(one.state))))
    )
    assert heard[0] == (15.0, "running")
    assert heard[-1] == (found.after_s, "rolled_back")
    assert (found.state, found.stage, found.serving) == ("rolled_back", 0, 0)
    assert 0 < found.exposed < 60
    assert found.after_s <= 120.0
    assert "the error rate is 100 %" in found.reason


@pytest.mark.parametrize(
    ("candidate", "counted", "reason"),
    [
        ("refused_rate = 1.0", "refused", "trial_golden_failed"),
        ("reverted_rate = 1.0\nreverted_s = 20", "reverted", "probation_error_rate"),
    ],
)
def test_what_devices_put_back_themselves_ends_a_rollout(candidate, counted, reason):
    found = ended(small(candidate))
    assert (found.state, found.stage, found.serving) == ("rolled_back", 0, 0)
    assert getattr(found, counted) > 2
    assert reason in found.reason


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("reverted_rate = 1.0\nreverted_s = 5", "went back by themselves"),
        ("refused_rate = 1.0", "refused the bundle"),
    ],
)
def test_a_bundle_that_fails_on_one_provider_goes_on_to_the_others(fault, says):
    kinds = "kinds = { 'edge/cpu' = 0.6, 'edge/cuda' = 0.4 }"
    found = ended(small(f"only_kind = 'edge/cuda'\n{fault}", population=kinds))
    acted = [one for one in found.decisions if one.action != "hold"]
    assert [one.action for one in acted] == ["start", "stop_stratum", "advance", "promote"]
    assert acted[1].reason.startswith("stopping edge/cuda in stage 1 of 2 (20 %): ")
    assert says in acted[1].reason
    assert found.state == "promoted"
    assert 60 < found.serving < 84, "all of cpu, about 72 of 120, and none of cuda"
    assert found.refused + found.reverted < 20, "cuda devices of the first stage alone"


def test_a_fleet_that_is_not_heard_holds_and_is_left_alone_in_the_end():
    found = ended(small("error_floor = 1.0", population="lost_rate = 1.0", run="duration_s = 400"))
    assert (found.state, found.stage) == ("holding", 0)
    assert 400.0 <= found.after_s < 460.0


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        (Scenario(), "time = "),
        (small(population="kinds = { 'cam/cpu' = 1.0 }"), "of class 'edge'"),
        (small(population="kinds = { 'edge' = 1.0 }"), "edge/PROVIDER"),
        (small("only_kind = 'edge/tpu'"), "not one of the kinds edge/cpu"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(scenario, said):
    with pytest.raises(ScenarioError, match=said):
        ended(scenario)
