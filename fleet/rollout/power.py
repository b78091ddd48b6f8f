"""The smallest change for the worse that each stage can be expected to see, before it begins. Pure.

Rules kept here: computed with the functions that decide, when the stage begins, which metrics can hold
it; where there is no history, it is said that the answer is not known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fleet.rollout.frozen import ARM_ROLES, Expected, expected_effects
from fleet.rollout.gate.opening import Pool, RingPlan, open_ring
from fleet.rollout.gate.ring import Counts, FloatArray, IntArray
from fleet.rollout.gate.schedule import FIRST_S
from fleet.rollout.spec import ALL_BP, RolloutSpec, StageKind

__all__ = ["Effects", "PastCounts", "Placed", "compared_stages", "effects"]

Effects = Mapping[str, float | None]
"""By rate metric: the factor that is seen with 90 % power; None when no factor is."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A device of the pool: which stratum it is in, and its slot."""

    device_id: str
    stratum: str
    slot: int


@dataclass(frozen=True, slots=True)
class PastCounts:
    """What devices counted before, and in how many seconds, in the order of the pool."""

    counts: Counts
    seconds: FloatArray

    def of(self, kept: IntArray) -> "PastCounts":
        """The same for the devices at these places."""
        counts = Counts(
            bad={name: values[kept] for name, values in self.counts.bad.items()},
            total={name: values[kept] for name, values in self.counts.total.items()},
            level={name: values[kept] for name, values in self.counts.level.items()},
        )
        return PastCounts(counts, self.seconds[kept])


def compared_stages(spec: RolloutSpec) -> tuple[int, ...]:
    """Indices of the stages in which bundles are compared: the new one is given requests, and the bake
    reaches the first look."""
    if not spec.guards.compares:
        return ()
    return tuple(
        index
        for index, stage in enumerate(spec.stages)
        if stage.kind is not StageKind.STANDBY and stage.bake_s >= FIRST_S
    )


def effects(
    spec: RolloutSpec, placed: Sequence[Placed], past: PastCounts | None
) -> dict[int, Effects]:
    """What each stage that is compared can see, by its index; empty without a history."""
    if past is None or not past.seconds.any():
        return {}
    found = {index: _of_stage(spec, index, placed, past) for index in compared_stages(spec)}
    return {index: seen for index, seen in found.items() if seen}


def _of_stage(spec: RolloutSpec, index: int, placed: Sequence[Placed], past: PastCounts) -> Effects:
    stage = spec.stages[index]
    paired = stage.kind in ARM_ROLES
    chosen = [device.slot < stage.percent_bp for device in placed]
    if paired:  # both bundles run on the devices of the stage: there is no other arm
        kept = np.flatnonzero(np.array(chosen))
        placed, past = [placed[int(at)] for at in kept], past.of(kept)
        chosen = [True] * len(placed)
    if not any(chosen) or (all(chosen) and not paired):
        return {}
    plan = RingPlan(
        rollout_id="plan",
        stage=index,
        rings=len(spec.stages),
        started_s=0.0,
        bake_s=stage.bake_s,
        percent_bp=ALL_BP if paired else stage.percent_bp,
        metrics=tuple(name for name, _ in spec.guards.metrics),
        alpha=spec.guards.alpha,
    )
    ids = [device.device_id for device in placed]
    pool = Pool(ids, [device.stratum for device in placed], chosen)
    ring = open_ring(plan, pool, past.counts)
    place = {device_id: at for at, device_id in enumerate(ids)}
    part = past.of(np.array([place[device_id] for device_id in ring.device_ids], dtype=np.int64))
    traffic = stage.traffic_bp / ALL_BP if paired else 1.0
    return expected_effects(ring, Expected(part.counts, part.seconds, paired, traffic))
