"""The smallest change for the worse that each stage can be expected to see, before it begins. Pure.

Rules kept here: computed with what the gate itself uses, from what the devices reported before; where
there is no such history, it is said that the answer is not known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fleet.rollout.gate.metrics import Kind, metric_of
from fleet.rollout.gate.opening import Pool, RingPlan, open_ring
from fleet.rollout.gate.ring import Counts
from fleet.rollout.gate.schedule import FIRST_S
from fleet.rollout.gate.telling import planned_effects
from fleet.rollout.spec import RolloutSpec, Stage, StageKind

__all__ = ["Effects", "Placed", "compared_stages", "effects"]

Effects = Mapping[str, float | None]
"""By rate metric: the factor that is seen with 90 % power; None when no factor is."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A device of the pool: which stratum it is in, and its slot."""

    device_id: str
    stratum: str
    slot: int


def compared_stages(spec: RolloutSpec) -> tuple[int, ...]:
    """Indices of the stages in which the arms are compared: a bundle that answers or shadows, and a
    bake that reaches the first look."""
    compared = (StageKind.CANARY, StageKind.SHADOW)
    if not spec.guards.compares:
        return ()
    return tuple(
        index
        for index, stage in enumerate(spec.stages)
        if stage.kind in compared and stage.bake_s >= FIRST_S
    )


def effects(
    spec: RolloutSpec, placed: Sequence[Placed], history: Counts | None
) -> dict[int, Effects]:
    """What each stage that is compared can see, by its index; empty without a history.

    ``history`` has the counts before the rollout, in the order of ``placed``.
    """
    rates = tuple(name for name, _ in spec.guards.metrics if metric_of(name).kind is Kind.RATE)
    if history is None or not rates:
        return {}
    stages = compared_stages(spec)
    found = {}
    for index in stages:
        seen = _of_stage(spec, (index, len(stages)), rates, placed, history)
        if seen:
            found[index] = seen
    return found


def _of_stage(
    spec: RolloutSpec,
    which: tuple[int, int],
    rates: tuple[str, ...],
    placed: Sequence[Placed],
    history: Counts,
) -> Effects:
    index, rings = which
    stage: Stage = spec.stages[index]
    cohort = [device.slot < stage.percent_bp for device in placed]
    if not any(cohort) or all(cohort):
        return {}
    plan = RingPlan(
        rollout_id="plan",
        stage=0,
        rings=rings,
        started_s=0.0,
        bake_s=stage.bake_s,
        percent_bp=stage.percent_bp,
        metrics=rates,
        alpha=spec.guards.alpha,
    )
    ids = [device.device_id for device in placed]
    ring = open_ring(plan, Pool(ids, [device.stratum for device in placed], cohort), history)
    place = {device_id: at for at, device_id in enumerate(ids)}
    kept = np.array([place[device_id] for device_id in ring.device_ids], dtype=np.int64)
    part = Counts(
        bad={name: values[kept] for name, values in history.bad.items()},
        total={name: values[kept] for name, values in history.total.items()},
    )
    known = {name: bool(ring.baseline[name].known) for name in rates}
    seen = planned_effects(ring, part)
    return {name: factor for name, factor in seen.items() if known[name]}
