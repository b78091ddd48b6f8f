"""A plan names the very devices that will install, and what stands in the way."""

from dataclasses import replace

import numpy as np
import pytest

from agent.trust import BundleRelease, DeviceFacts, in_cohort
from fleet.rollout.fitness import Candidate, Unfit
from fleet.rollout.gate.ring import Counts
from fleet.rollout.plan import Known, Plan, make_plan
from fleet.rollout.power import PastCounts
from fleet.rollout.spec import RolloutSpec, Stage, StageKind, Statistics, Strategy
from tests.fleet.rollout.rollout_builders import BUNDLE, NOW_S, SHA, spec


def release(**changes: object) -> BundleRelease:
    values = {"path": BUNDLE, "sha256": SHA, "length": 100, "model": "digits", "version": "2"}
    return BundleRelease(**{**values, "device_class": "cam", **changes})  # type: ignore[arg-type]


def device(
    number: int, device_class: str = "cam", hardware: str = "x86_64", **more: object
) -> Candidate:
    facts = DeviceFacts(f"cam-{number}", device_class, hardware, {"region": "north"})
    return Candidate(facts, NOW_S, **more)  # type: ignore[arg-type]


def limits_only(**changes: object) -> RolloutSpec:
    """A spec that compares nothing, so that nothing is said about it."""
    guards = replace(spec().guards, statistics=Statistics.OFF)
    return spec(**{"guards": guards, **changes})


FLEET = [device(number) for number in range(200)]


def planned(
    asked: RolloutSpec | None = None, fleet: list[Candidate] = FLEET, **changes: object
) -> Plan:
    known = Known(fleet, NOW_S, "bundles/cam/digits-1")
    return make_plan(asked or limits_only(), release(**changes), known)


def test_stages_are_the_cohorts_of_the_devices() -> None:
    plan = planned()
    for stage in plan.stages:
        expected = [d for d in FLEET if in_cohort(SHA, d.facts.device_id, stage.percent_bp)]
        assert stage.devices == len(expected)
    assert [stage.devices for stage in plan.stages][-1] == len(FLEET)
    assert sum(stage.added for stage in plan.stages) == len(FLEET)
    assert plan.problems == ()
    assert plan.warnings == ()
    assert plan.shortest_s == 180
    assert all(in_cohort(SHA, name, 1000) for name in plan.stages[0].sample)


def test_who_cannot_run_it_is_left_out() -> None:
    fleet = [*FLEET, device(500, "edge"), device(501, hardware="aarch64")]
    plan = planned(fleet=fleet, hardware=("x86_64",))
    assert plan.matching == len(FLEET)
    assert plan.warnings == ("1 matching devices are left out: the bundle runs on x86_64 only",)


def test_nobody_fits() -> None:
    asked = limits_only(selector=(("region", "south"),))
    (problem,) = planned(asked).problems
    assert problem.startswith(f"no known device fits {BUNDLE} with region=south")


def test_a_first_stage_that_is_too_small_says_what_is_enough() -> None:
    small = FLEET[:5]
    (problem,) = planned(fleet=small).problems
    wanted = float(problem.rpartition("start with ")[2].removesuffix(" % or more"))
    enough = [d for d in small if in_cohort(SHA, d.facts.device_id, round(wanted * 100))]
    assert len(enough) >= spec().guards.min_devices
    (hopeless,) = planned(fleet=FLEET[:1]).problems
    assert hopeless.endswith("lower min_devices")


def test_warnings() -> None:
    lone = make_plan(limits_only(), release(), Known(FLEET, NOW_S))
    assert "nothing was promoted before" in lone.warnings[0]
    slow = planned(limits=((0, 100), (86_400, 10_000)))
    assert "the release allows 100 % only 86400 s after it was signed" in slow.warnings[0]
    close = limits_only(stages=(Stage(5000, 60.0), Stage(5001, 60.0), Stage(10_000, 60.0)))
    assert planned(close, FLEET[:20]).warnings == (
        "stage 2 (50.01 %) adds no device to the one before it",
    )
    hasty = limits_only(stages=(Stage(10_000, 5.0),))
    assert "a stage bakes only 5 s, less than silence_s = 30 s" in planned(hasty).warnings[0]
    tolerant = limits_only(guards=replace(spec().guards, max_install_failure_rate=0.5))
    assert "max_install_failure_rate is 50 %" in planned(tolerant).warnings[0]


def test_who_is_held_back_is_said() -> None:
    asked = limits_only(hold_back="10%")
    plan = planned(asked)
    kept = [d for d in FLEET if not in_cohort(SHA, d.facts.device_id, 9000)]
    assert plan.held_back.added == len(kept)
    assert plan.stages[-1].devices == len(FLEET) - len(kept)
    said = plan.to_json()["held_back"]
    assert (said["percent_bp"], said["devices"]) == (1000, len(kept))
    assert set(said["sample"]) <= {d.facts.device_id for d in kept}


def test_a_count_of_devices_is_exactly_that() -> None:
    stages = (Stage(0, 60.0, devices=20), Stage(10_000, 60.0))
    plan = planned(limits_only(stages=stages))
    assert [stage.devices for stage in plan.stages] == [20, 200]
    mixed = (Stage(5000, 60.0), Stage(0, 60.0, devices=20), Stage(10_000, 60.0))
    assert "each stage must reach more" in planned(limits_only(stages=mixed)).problems[0]


def test_who_is_excluded_or_may_fail_is_listed() -> None:
    small = device(500, memory_bytes=1, refused=True)
    plan = planned(limits_only(exclude=(("id", "cam-3"),)), [*FLEET, small])
    assert plan.matching == len(FLEET)  # one less and one more
    told = {met.why: met.sample for met in plan.unfit}
    assert told == {Unfit.EXCLUDED: ("cam-3",), Unfit.REFUSED_BEFORE: ("cam-500",)}
    assert any("1 device may not be able to take it (cam-500)" in w for w in plan.warnings)


def test_stages_of_another_kind_begin_anew() -> None:
    plan = planned(limits_only(strategy=Strategy.BLUE_GREEN, stages=BLUE_GREEN))
    assert plan.stages[0].added == 200
    assert sum(stage.added for stage in plan.stages[1:]) == 200
    assert plan.stages[0].words == "standby on 100 %"


BLUE_GREEN = (Stage(10_000, 60.0, StageKind.STANDBY), Stage(1000, 60.0), Stage(10_000, 60.0))


def past(fleet: list[Candidate], *, requests: int = 20_000, spread: float = 0.002) -> PastCounts:
    """A day of requests on each device: 2 % errors, more or less of them by device."""
    drawn = np.random.default_rng(7)
    rates = np.clip(drawn.normal(0.02, spread, len(fleet)), 0.001, 0.2)
    total = np.full(len(fleet), requests, dtype=np.int64)
    bad = drawn.binomial(total, rates).astype(np.int64)
    return PastCounts(
        Counts({"error_rate": bad}, {"error_rate": total}), np.full(len(fleet), 86_400.0)
    )


AUTO = replace(spec().guards, statistics=Statistics.AUTO)
ONE_METRIC = replace(AUTO, metrics=(("error_rate", 1.25),))
LONG = (Stage(500, 3600.0), Stage(5000, 3600.0), Stage(10_000, 3600.0))


def test_what_each_stage_can_see_is_said_and_warned_of() -> None:
    asked = spec(guards=ONE_METRIC, stages=LONG)
    plan = make_plan(asked, release(), Known(FLEET, NOW_S, "b", past=past(FLEET)))
    seen = [stage.effects["error_rate"] for stage in plan.stages if stage.effects is not None]
    assert len(seen) == 3
    assert seen[0] is not None
    assert seen[1] is not None
    assert seen[0] > seen[1] > 1
    coarse = [text for text in plan.warnings if "of error_rate (you asked for 1.25x)" in text]
    assert coarse[0].startswith("stage 1 (5 %) can see ")
    assert coarse[0].endswith(": absolute limits alone decide on these")
    assert plan.problems == ()
    assert plan.held_back.added == 100


def test_without_a_history_nothing_is_known() -> None:
    asked = spec(guards=ONE_METRIC, stages=LONG)
    nothing = past(FLEET, requests=0)
    quiet = PastCounts(nothing.counts, np.zeros(len(FLEET)))
    for known in (None, quiet):
        plan = make_plan(asked, release(), Known(FLEET, NOW_S, "b", past=known))
        assert [stage.effects for stage in plan.stages] == [None] * 3


@pytest.mark.parametrize(
    ("changes", "fleet", "says"),
    [
        ({}, FLEET, "no stage bakes for 150 s (the longest 60 s)"),
        ({"stages": LONG}, FLEET[:30], "30 devices are too few for two arms: 40 are needed"),
    ],
)
def test_where_nothing_can_be_compared_auto_warns_and_on_is_a_problem(
    changes: dict[str, object], fleet: list[Candidate], says: str
) -> None:
    auto = planned(spec(guards=AUTO, **changes), fleet)
    assert any(says in text and "absolute limits alone" in text for text in auto.warnings)
    on = replace(spec().guards, statistics=Statistics.ON)
    (problem,) = planned(spec(guards=on, **changes), fleet).problems
    assert says in problem


def test_statistics_on_needs_somebody_to_compare_with() -> None:
    on = replace(spec().guards, statistics=Statistics.ON)
    (problem,) = planned(spec(guards=on, stages=LONG, hold_back="0")).problems
    assert 'set hold_back = "5%"' in problem
    assert planned(spec(guards=on, stages=LONG)).problems == ()
