"""Opening a ring: from the devices that match to what is frozen. Pure.

Rules kept here: control is sub-sampled by a hash that has nothing to do with the cohort's; the
result does not depend on the order in which devices are given; the seed of the virtual cohorts
follows from rollout and ring, so nobody can choose it.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fleet.rollout.gate.baseline import level_baseline, rate_baseline
from fleet.rollout.gate.blocks import blocks_of, tests_of
from fleet.rollout.gate.metrics import Kind, metric_of
from fleet.rollout.gate.ring import (
    ALPHA,
    Baseline,
    BoolArray,
    Counts,
    IntArray,
    Ring,
)
from fleet.rollout.gate.schedule import look_minutes

__all__ = ["FIXED_ABOVE", "Pool", "RingPlan", "open_ring", "placebo_seed", "virtual_count"]

FIXED_ABOVE: Final = 5000  # canary devices: beyond, a formula replaces the virtual cohorts
_LEAST_POOL: Final = 2000
_CONTROL_SHARE: Final = 20  # times the cohort
_LEAST_VIRTUAL: Final = 4999
_MOST_VIRTUAL: Final = 49_999
_MOST_CELLS: Final = 40_000_000  # virtual cohorts times their devices: memory and time of a look


@dataclass(frozen=True, slots=True)
class RingPlan:
    """What is asked of a ring. ``stage`` counts from 0 to ``rings`` - 1.

    ``percent_bp`` is the share of the matching devices that the cohort should have: the stage's,
    less the hold-back.
    """

    rollout_id: str
    stage: int
    rings: int
    started_s: float
    bake_s: float
    percent_bp: int
    metrics: tuple[str, ...]
    tolerances: Mapping[str, float] = field(default_factory=dict)
    alpha: float = ALPHA


@dataclass(frozen=True, slots=True)
class Pool:
    """The devices that match, in any order: who, what kind ("edge/cpu"), and whether in the cohort."""

    device_ids: Sequence[str]
    strata: Sequence[str]
    cohort: Sequence[bool]


def open_ring(plan: RingPlan, pool: Pool, history: Counts) -> Ring:
    """Freeze a ring. ``history`` has the counts before the rollout, in the order of ``pool``.

    Raises:
        ValueError: the parts of the pool differ in length, or an id is there twice.
        KeyError: a metric is not known.
    """
    _check(pool)
    cohort = np.asarray(pool.cohort, dtype=np.bool_)
    seed = placebo_seed(plan.rollout_id, plan.stage)
    keep = _kept(pool.device_ids, cohort, seed)
    ids = tuple(pool.device_ids[index] for index in keep)
    names = tuple(sorted({pool.strata[index] for index in keep}))
    number = {name: index for index, name in enumerate(names)}
    strata = np.array([number[pool.strata[index]] for index in keep], dtype=np.int16)
    chosen = cohort[keep]
    looks_s = look_minutes(plan.bake_s)
    tests = tests_of(blocks_of(strata, names, chosen), plan.alpha / plan.rings)
    return Ring(
        rollout_id=plan.rollout_id,
        stage=plan.stage,
        rings=plan.rings,
        started_s=plan.started_s,
        bake_s=plan.bake_s,
        device_ids=ids,
        strata=strata,
        stratum_names=names,
        cohort=chosen,
        percent_bp=plan.percent_bp,
        drawn_from=len(pool.device_ids),
        metrics=plan.metrics,
        tolerances=dict(plan.tolerances),
        baseline={name: _baseline(name, history, keep) for name in plan.metrics},
        looks_s=looks_s,
        alpha=plan.alpha,
        virtual=virtual_count(len(looks_s), min(tests.values()), int(np.count_nonzero(chosen))),
        seed=seed,
    )


def placebo_seed(rollout_id: str, stage: int) -> bytes:
    """The seed of a ring's virtual cohorts: SHA-256 of rollout, ring and the word placebo."""
    return hashlib.sha256(f"{rollout_id}\n{stage}\nplacebo".encode()).digest()


def virtual_count(looks: int, alpha: float, canaries: int) -> int:
    """How many virtual cohorts a ring needs; 0 when it has too many devices for them.

    At least ceil(looks/alpha) - 1 for the smallest test, so that each look may drop one and a total
    failure is found at the first; bounded, in which case the early looks of small tests cannot alarm.
    """
    if canaries > FIXED_ABOVE:
        return 0
    wanted = math.ceil(looks / alpha - 1e-9) - 1
    most = min(_MOST_VIRTUAL, _MOST_CELLS // max(1, canaries))
    return max(_LEAST_VIRTUAL, min(wanted, most))


def _check(pool: Pool) -> None:
    lengths = (len(pool.device_ids), len(pool.strata), len(pool.cohort))
    if len(set(lengths)) != 1:
        raise ValueError(f"the pool has {lengths} ids, strata and arms: they must be as many")
    if len(set(pool.device_ids)) != lengths[0]:
        raise ValueError("the pool has a device id twice: each device belongs to one arm")


def _kept(device_ids: Sequence[str], cohort: BoolArray, seed: bytes) -> IntArray:
    """Indices of the cohort and of as many control devices as are compared, by id."""
    canaries = int(np.count_nonzero(cohort))
    most = max(_LEAST_POOL, _CONTROL_SHARE * canaries)
    control = [index for index in range(len(device_ids)) if not cohort[index]]
    spare = max(0, most - canaries)
    if len(control) > spare:
        control.sort(key=lambda index: _place(seed, device_ids[index]))
        control = control[:spare]
    kept = [*np.flatnonzero(cohort).tolist(), *control]
    return np.array(sorted(kept, key=lambda index: device_ids[index]), dtype=np.int64)


def _place(seed: bytes, device_id: str) -> bytes:
    return hashlib.sha256(b"control-v1" + seed + device_id.encode()).digest()


def _baseline(name: str, history: Counts, keep: IntArray) -> Baseline:
    if metric_of(name).kind is Kind.LEVEL:
        level = history.level.get(name)
        return level_baseline(np.full(len(keep), np.nan) if level is None else level[keep])
    bad, total = history.bad.get(name), history.total.get(name)
    if bad is None or total is None:
        nothing = np.zeros(len(keep), dtype=np.int64)
        return rate_baseline(nothing, nothing)
    return rate_baseline(bad[keep], total[keep])
