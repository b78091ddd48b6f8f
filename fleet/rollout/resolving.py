"""What of a spec depends on the fleet, decided once when the rollout is created. Pure.

Rules kept here: everything comes from the slots of the devices the rollout is for, so the plan and the
devices agree; what has been decided is not decided again; nobody is held back where nothing can be
learned from them.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from fleet.rollout.gate.schedule import FIRST_S
from fleet.rollout.spec import ALL_BP, AUTO, RolloutSpec, Stage, Strategy
from fleet.rollout.strategies import share_before

__all__ = ["AUTO_DEVICES", "AUTO_SHARE", "SMALLEST_FLEET", "can_compare", "resolve"]

AUTO_SHARE: Final = 0.05
AUTO_DEVICES: Final = 100
SMALLEST_FLEET: Final = 40  # devices below which two arms say nothing about each other
MOST_DOUBLINGS: Final = 10
MOST_RAMP_S: Final = 30 * 86_400.0


def resolve(spec: RolloutSpec, slots: Sequence[int]) -> RolloutSpec:
    """The spec with the share of each stage, the hold-back and the ramps decided.

    Args:
        spec: as asked for.
        slots: the slot of every device the rollout is for, in any order.
    """
    ordered = sorted(slots)
    if spec.hold_back_bp == 0:
        spec = replace(spec, hold_back_bp=_hold_back_bp(spec, ordered))
    spec = replace(spec, stages=tuple(_share(stage, spec, ordered) for stage in spec.stages))
    ramped = [_ramp(spec, index, ordered) for index in range(len(spec.stages))]
    return replace(spec, stages=tuple(ramped))


def can_compare(spec: RolloutSpec, devices: int) -> bool:
    """Whether a hold-back would be of use: something compares arms, and they can be told apart."""
    long_enough = any(stage.bake_s >= FIRST_S for stage in spec.stages if not stage.is_beside)
    return spec.guards.compares and long_enough and devices >= SMALLEST_FLEET


def _hold_back_bp(spec: RolloutSpec, ordered: Sequence[int]) -> int:
    if spec.hold_back.endswith("%"):
        return round(float(spec.hold_back.removesuffix("%")) * 100)
    total = len(ordered)
    if spec.hold_back != AUTO:
        devices = int(spec.hold_back)
    elif can_compare(spec, total) and spec.strategy is not Strategy.ALL_AT_ONCE:
        devices = max(math.ceil(AUTO_SHARE * total), AUTO_DEVICES)
    else:
        devices = 0
    devices = min(devices, total // 2)
    if devices == 0:
        return 0
    reach_bp = ordered[total - devices]
    if total - bisect.bisect_left(ordered, reach_bp) > devices:
        reach_bp += 1  # who shares that slot with others goes with them, and is not held back
    return ALL_BP - reach_bp


def _share(stage: Stage, spec: RolloutSpec, ordered: Sequence[int]) -> Stage:
    """How far the stage reaches. Whoever holds the bundle beside has both, and needs no control."""
    percent_bp = stage.percent_bp
    if percent_bp == 0:
        enough = stage.devices <= len(ordered) and stage.devices > 0
        percent_bp = ordered[stage.devices - 1] + 1 if enough else ALL_BP
    if not stage.is_beside:
        percent_bp = min(percent_bp, spec.reach_bp)
    return replace(stage, percent_bp=percent_bp)


def _ramp(spec: RolloutSpec, index: int, ordered: Sequence[int]) -> Stage:
    """How long it takes to reach the stage's devices; its bake begins after that.

    With n new devices at most r a minute: n/r minutes evenly. Doubling d times in T the rate is
    largest at the end, n d ln 2 2^d / ((2^d - 1) T), which is r for T = n d ln 2 2^d / ((2^d - 1) r).
    """
    stage = spec.stages[index]
    if stage.devices_per_minute == 0 or stage.ramp_s > 0:
        return stage
    before_bp = share_before(spec, index)
    added = sum(before_bp <= slot < stage.percent_bp for slot in ordered)
    ramp_s = 60.0 * added / stage.devices_per_minute
    doublings = 0
    if stage.ramp == "exponential":
        doublings = min(MOST_DOUBLINGS, max(1, round(math.log2(max(added, 2)))))
        grown = 2.0**doublings
        ramp_s *= doublings * math.log(2) * grown / (grown - 1)
    ramp_s = float(min(math.ceil(ramp_s), MOST_RAMP_S))
    bake_s = min(stage.bake_s + ramp_s, MOST_RAMP_S)
    return replace(stage, ramp_s=ramp_s, ramp_doublings=doublings, bake_s=bake_s)
