"""A plan names the very devices that will install, and what stands in the way."""

from dataclasses import replace

from agent.trust import BundleRelease, DeviceFacts, in_cohort
from fleet.rollout.fitness import Candidate
from fleet.rollout.plan import Known, Plan, make_plan
from fleet.rollout.spec import RolloutSpec, Stage, Statistics
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
