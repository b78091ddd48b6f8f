"""What stands in the way of a plan, and what its operator should know. Pure.

Rules kept here: a problem means that the rollout could not go through as it is; a warning means that
it could, and what to expect; each says the number found and what would help.
"""

import itertools
from collections.abc import Iterator, Sequence

from agent.trust import BundleRelease
from fleet.rollout.fitness import Unfit
from fleet.rollout.frozen import MARGIN
from fleet.rollout.gate.schedule import FIRST_S
from fleet.rollout.planned import Plan, PlannedStage
from fleet.rollout.power import compared_stages
from fleet.rollout.resolving import SMALLEST_FLEET, can_compare
from fleet.rollout.spec import ALL_BP, MIN_COVERAGE, RolloutSpec, Statistics

__all__ = ["problems", "warnings"]


def problems(plan: Plan, slots: Sequence[int]) -> tuple[str, ...]:
    """Why the rollout could not go through. ``slots``: of the devices it is for, ascending."""
    if plan.matching == 0:
        return (_nobody(plan.spec),)
    return tuple(text for text in (_first_stage(plan, slots), _order(plan), _blind(plan)) if text)


def _nobody(spec: RolloutSpec) -> str:
    wanted = ", ".join(f"{key}={value}" for key, value in spec.selector) or "any labels"
    left_out = ", ".join(f"{key}={value}" for key, value in spec.exclude)
    without = f" and without {left_out}" if left_out else ""
    return (
        f"no known device fits {spec.bundle} with {wanted}{without}: see `fleet device list`, or "
        "wait until the devices have connected"
    )


def _first_stage(plan: Plan, slots: Sequence[int]) -> str:
    """Whether as many devices as must report are in it at all."""
    first, needed = plan.stages[0], plan.spec.guards.min_devices
    if first.devices >= needed:
        return ""
    text = (
        f"stage 1 ({plan.spec.stages[0].words}) reaches {first.devices} of {plan.matching} devices, "
        f"and {needed} must report before it can pass"
    )
    if plan.matching >= needed:
        enough_bp = slots[needed - 1] + 1
        at_least = min(ALL_BP, -(-enough_bp // 100) * 100)
        return f"{text}: start with {at_least / 100:g} % or more"
    return f"{text}: lower min_devices"


def _order(plan: Plan) -> str:
    """A count after a share, or a share after a count, may turn out to be less."""
    stages = plan.spec.stages
    for number, (before, stage) in enumerate(itertools.pairwise(stages), 2):
        if before.kind is stage.kind and stage.percent_bp < before.percent_bp:
            return (
                f"stage {number} reaches {plan.stages[number - 1].devices} devices and the one "
                f"before it {plan.stages[number - 2].devices}: each stage must reach more"
            )
    return ""


def _blind(plan: Plan) -> str:
    """Statistics that are required and can never be had would hold for ever."""
    spec = plan.spec
    if spec.guards.statistics is not Statistics.ON:
        return ""
    if can_compare(spec, plan.matching) and spec.hold_back_bp > 0:
        return ""
    if spec.hold_back_bp == 0 and can_compare(spec, plan.matching):
        why = 'no device is held back to compare the last stage with: set hold_back = "5%"'
    else:
        why = _too_small(spec, plan.matching)
    return f'statistics = "on", but {why}; or use statistics = "auto"'


def _too_small(spec: RolloutSpec, devices: int) -> str:
    if devices < SMALLEST_FLEET:
        return f"{devices} devices are too few for two arms: {SMALLEST_FLEET} are needed"
    longest_s = max(stage.bake_s for stage in spec.stages)
    return (
        f"no stage bakes for {FIRST_S:g} s (the longest {longest_s:g} s), before which nothing can "
        "be compared"
    )


# --- warnings -------------------------------------------------------------------------------------


def warnings(plan: Plan, release: BundleRelease) -> tuple[str, ...]:
    """What the operator should know."""
    return (
        *_devices(plan, release),
        *_stages(plan),
        *_guards(plan.spec),
        *_statistics(plan),
        *_ends(plan, release),
    )


def _devices(plan: Plan, release: BundleRelease) -> Iterator[str]:
    for met in plan.unfit:
        named = ", ".join(met.sample) + (", ..." if met.devices > len(met.sample) else "")
        if met.why is Unfit.HARDWARE:
            kinds = ", ".join(release.hardware)
            yield f"{met.devices} matching devices are left out: the bundle runs on {kinds} only"
        elif not met.why.leaves_out:
            count = "1 device" if met.devices == 1 else f"{met.devices} devices"
            yield f"{count} may not be able to take it ({named}): {met.text}"
    if plan.spec.open_hours:
        yield (
            f"devices begin and swap only in {', '.join(plan.spec.open_hours)} of their local time: "
            "a stage goes on when enough of them have had their turn"
        )


def _stages(plan: Plan) -> Iterator[str]:
    spec = plan.spec
    for number, stage in enumerate(plan.stages[1:], 2):
        if stage.added == 0:
            yield f"stage {number} ({stage.percent_bp / 100:g} %) adds no device to the one before it"
    hasty = [stage.bake_s for stage in spec.stages if stage.bake_s < spec.guards.silence_s]
    if hasty:
        yield (
            f"a stage bakes only {min(hasty):g} s, less than silence_s = {spec.guards.silence_s:g} s: "
            "a device that falls silent in it is noticed in the next one, or not at all"
        )


def _guards(spec: RolloutSpec) -> Iterator[str]:
    tolerated = spec.guards.max_install_failure_rate
    if tolerated is None or tolerated > 1 - MIN_COVERAGE:
        said = "off" if tolerated is None else f"{tolerated * 100:g} %"
        yield (
            f"max_install_failure_rate is {said}, but a stage goes on only when "
            f"{MIN_COVERAGE * 100:g} % of its devices have committed: with more failures it holds"
        )


def _statistics(plan: Plan) -> Iterator[str]:
    """What the comparison with control can and cannot see."""
    spec = plan.spec
    if not spec.guards.compares or plan.matching == 0:
        return
    if not can_compare(spec, plan.matching):
        if spec.guards.statistics is Statistics.AUTO:
            yield (f"absolute limits alone decide: {_too_small(spec, plan.matching)}")
        return
    for index in compared_stages(spec):
        coarse = _coarse(spec, plan.stages[index])
        if not coarse:
            continue
        what = (
            "absolute limits alone decide on these"
            if spec.guards.statistics is Statistics.AUTO
            else "it would hold"
        )
        yield f"stage {index + 1} ({plan.stages[index].words}) can see {coarse}: {what}"


def _coarse(spec: RolloutSpec, stage: PlannedStage) -> str:
    """The metrics whose tolerance a stage cannot be expected to see, in words."""
    seen = stage.effects or {}
    # what ``auto`` decides by when the stage begins
    margin = MARGIN if spec.guards.statistics is Statistics.AUTO else 1.0
    parts = []
    for name, tolerance in spec.guards.metrics:
        if name not in seen:
            continue
        smallest = seen[name]
        if smallest is None:
            parts.append(f"no change of {name} (you asked for {tolerance:g}x)")
        elif smallest - 1 > margin * (tolerance - 1):
            parts.append(f"{smallest:.3g}x of {name} (you asked for {tolerance:g}x)")
    return " and ".join(parts)


def _ends(plan: Plan, release: BundleRelease) -> Iterator[str]:
    if not plan.previous_bundle:
        yield (
            "nothing was promoted before, so a rollback goes to what each device ran before; "
            "a device that ran nothing keeps this bundle"
        )
    slowest_s = max((after_s for after_s, share in release.limits if share > 0), default=0)
    if slowest_s > sum(stage.bake_s for stage in plan.spec.stages[:-1]):
        yield (
            f"the release allows 100 % only {slowest_s:g} s after it was signed: stages wait for it"
        )
