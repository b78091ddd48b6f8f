"""What a rollout would do, before it does it: who is in which stage, and what stands in the way.

Rules kept here: the plan uses the functions the devices use, so it names the very devices that will
install; a problem keeps a rollout from starting (unless forced), a warning does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from agent.trust import BundleRelease, slot_of
from fleet.rollout.observe import KnownDevice, pool_of
from fleet.rollout.spec import ALL_BP, MIN_COVERAGE, RolloutSpec

__all__ = ["Plan", "PlannedStage", "make_plan"]

SAMPLE: Final = 10  # devices named for each stage


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage: ``devices`` in all, ``added`` by it, some of the added by name."""

    percent_bp: int
    bake_s: float
    devices: int
    added: int
    sample: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "percent_bp": self.percent_bp,
            "bake_s": self.bake_s,
            "devices": self.devices,
            "added": self.added,
            "sample": list(self.sample),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages with their devices. ``matching`` devices are in the pool, ``reachable`` of them now."""

    spec: RolloutSpec
    manifest_sha256: str
    previous_bundle: str
    matching: int
    reachable: int
    stages: tuple[PlannedStage, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def shortest_s(self) -> float:
        """No rollout is faster than its bake times."""
        return sum(stage.bake_s for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        return {
            "spec": self.spec.to_json(),
            "manifest_sha256": self.manifest_sha256,
            "previous_bundle": self.previous_bundle,
            "matching": self.matching,
            "reachable": self.reachable,
            "shortest_s": self.shortest_s,
            "stages": [stage.to_json() for stage in self.stages],
            "problems": list(self.problems),
            "warnings": list(self.warnings),
        }


def make_plan(
    spec: RolloutSpec,
    release: BundleRelease,
    known: Sequence[KnownDevice],
    now_s: float,
    previous_bundle: str = "",
) -> Plan:
    """Put every known device into its stage.

    Args:
        spec: what is asked for.
        release: the signed line about the bundle.
        known: every device of the fleet.
        now_s: server time.
        previous_bundle: what a rollback goes back to; "" when nothing was promoted before.
    """
    pool = pool_of(known, spec.bundle, spec.selector, release)
    fitting = pool_of(known, spec.bundle, spec.selector, None)
    slots = {d.facts.device_id: slot_of(release.sha256, d.facts.device_id) for d in pool}
    stages = _stages(spec, slots)
    reachable = sum(now_s - device.last_seen_s <= spec.guards.silence_s for device in pool)
    return Plan(
        spec=spec,
        manifest_sha256=release.sha256,
        previous_bundle=previous_bundle,
        matching=len(pool),
        reachable=reachable,
        stages=stages,
        problems=_problems(spec, stages, len(pool), slots),
        warnings=_warnings(spec, stages, release, (len(fitting) - len(pool), previous_bundle)),
    )


def _stages(spec: RolloutSpec, slots: dict[str, int]) -> tuple[PlannedStage, ...]:
    stages = []
    before_bp = 0
    for stage in spec.stages:
        added = sorted(d for d, slot in slots.items() if before_bp <= slot < stage.percent_bp)
        devices = sum(slot < stage.percent_bp for slot in slots.values())
        sample = tuple(added[:SAMPLE])
        stages.append(PlannedStage(stage.percent_bp, stage.bake_s, devices, len(added), sample))
        before_bp = stage.percent_bp
    return tuple(stages)


def _problems(
    spec: RolloutSpec,
    stages: Sequence[PlannedStage],
    matching: int,
    slots: dict[str, int],
) -> tuple[str, ...]:
    if matching == 0:
        wanted = ", ".join(f"{key}={value}" for key, value in spec.selector) or "any labels"
        return (
            f"no known device fits {spec.bundle} with {wanted}: see `fleet device list`, or wait "
            "until the devices have connected",
        )
    first, needed = stages[0], spec.guards.min_devices
    if first.devices >= needed:
        return ()
    text = (
        f"stage 1 ({spec.stages[0].percent}) reaches {first.devices} of {matching} devices, and "
        f"{needed} must report before it can pass"
    )
    if matching >= needed:
        enough_bp = sorted(slots.values())[needed - 1] + 1
        at_least = min(ALL_BP, -(-enough_bp // 100) * 100)
        return (f"{text}: start with {at_least / 100:g} % or more",)
    return (f"{text}: lower min_devices",)


def _warnings(
    spec: RolloutSpec,
    stages: Sequence[PlannedStage],
    release: BundleRelease,
    other: tuple[int, str],
) -> tuple[str, ...]:
    unfit, previous_bundle = other
    warnings = []
    if unfit:
        kinds = ", ".join(release.hardware)
        warnings.append(f"{unfit} matching devices are left out: the bundle runs on {kinds} only")
    for number, stage in enumerate(stages[1:], 2):
        if stage.added == 0:
            warnings.append(
                f"stage {number} ({stage.percent_bp / 100:g} %) adds no device to the one before it"
            )
    hasty = [stage.bake_s for stage in spec.stages if stage.bake_s < spec.guards.silence_s]
    if hasty:
        warnings.append(
            f"a stage bakes only {min(hasty):g} s, less than silence_s = {spec.guards.silence_s:g} s: "
            "a device that falls silent in it is noticed in the next one, or not at all"
        )
    tolerated = spec.guards.max_install_failure_rate
    if tolerated is None or tolerated > 1 - MIN_COVERAGE:
        said = "off" if tolerated is None else f"{tolerated * 100:g} %"
        warnings.append(
            f"max_install_failure_rate is {said}, but a stage goes on only when "
            f"{MIN_COVERAGE * 100:g} % of its devices have committed: with more failures it holds"
        )
    if not previous_bundle:
        warnings.append(
            "nothing was promoted before, so a rollback goes to what each device ran before; "
            "a device that ran nothing keeps this bundle"
        )
    slowest_s = max((after_s for after_s, share in release.limits if share > 0), default=0)
    if slowest_s > sum(stage.bake_s for stage in spec.stages[:-1]):
        warnings.append(
            f"the release allows 100 % only {slowest_s:g} s after it was signed: stages wait for it"
        )
    return tuple(warnings)
