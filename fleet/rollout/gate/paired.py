"""A/B inside every device: an arm is a share of the requests, and both run side by side. Pure.

Rules kept here: a device is its own control, so what is compared is the difference between its two
arms; under "the bundles are alike" the arms of each device could as well be named the other way
round, so the names are swapped by coin and the real naming is ranked among the swapped ones; what a
look may spend is the same as anywhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from fleet.rollout.gate.judged import Judged, Test, by_rank
from fleet.rollout.gate.look import present, scores_of
from fleet.rollout.gate.result import LookResult
from fleet.rollout.gate.ring import (
    POOLED,
    Baseline,
    Counts,
    FloatArray,
    IntArray,
    Ring,
    State,
    fresh,
)
from fleet.rollout.gate.scores import QUANTUM, Scored
from fleet.rollout.gate.statistic import Statistic, worst_of
from fleet.rollout.gate.tails import pearson3_tail
from fleet.rollout.gate.telling import View

__all__ = ["ArmCounts", "look_paired"]

_CHUNK_CELLS: Final = 1 << 21


@dataclass(frozen=True, slots=True)
class ArmCounts:
    """What each device reported since the ring started, by arm: of the new bundle, and of the stable one."""

    new: Counts
    stable: Counts


def look_paired(ring: Ring, state: State, arms: ArmCounts, k: int) -> tuple[LookResult, State]:
    """As ``look``, for a ring whose devices (``cohort`` is true for all) run both bundles.

    The score of a device is that of its new arm less that of its stable one; it counts when both arms
    have enough events. Strata are not tested on their own, and the smallest effect that is told is
    that of unpaired arms: the real one is no larger.

    Raises:
        ValueError: ``k`` is no look of the ring, or the ring has control devices.
    """
    if ring.canaries != ring.size:
        raise ValueError(f"ring {ring.stage} has control devices: compare them with look()")
    if not 1 <= k <= len(ring.looks_s):
        raise ValueError(f"look {k} of ring {ring.stage}: it has looks 1 to {len(ring.looks_s)}")
    both = _doubled(ring)
    counts = _stacked(ring, arms)
    found = scores_of(both, counts)
    differences = _differences(found, ring.size)
    view = View(both, counts, found, np.ones(both.size, dtype=np.bool_))
    if not differences:
        spending = state.tests.get(POOLED) or fresh(ring.virtual)
        trouble = "no device has reported enough in both arms to be compared"
        nothing = Judged(False, 1.0, "", None, 0, 0, spending)
        return present(view, {POOLED: nothing}, state, k, trouble), state
    judged = _judge(ring, state, differences, k)
    after = State(max(k, state.looks), {**state.tests, POOLED: judged.spending}, ())
    return present(view, {POOLED: judged}, after, k), after


def _judge(ring: Ring, state: State, differences: Mapping[str, IntArray], k: int) -> Judged:
    test = Test(POOLED, tuple(range(len(ring.blocks))), k)
    if ring.virtual:
        return by_rank(ring, state, _flipped(ring, differences), test)
    z: dict[str, float] = {}
    p_values: dict[str, float] = {}
    for name, difference in differences.items():
        values = difference / QUANTUM
        size = float(np.sqrt((values**2).sum()))
        if size > 0:  # swapping names makes it symmetric: no skewness
            z[name] = float(values.sum()) / size
            p_values[name] = pearson3_tail(z[name], 0.0)
    spending = state.tests.get(POOLED) or fresh(0)
    if not z:
        return Judged(False, 1.0, "", None, 0, 0, spending)
    driver = min(p_values, key=lambda name: p_values[name])
    p_value = min(1.0, p_values[driver] * len(z))
    share = max(0, k - state.looks) / len(ring.looks_s)
    alarm = p_value <= ring.tests[POOLED] * share
    return Judged(alarm, p_value, driver, z[driver], 0, 0, spending, z, p_values)


def _differences(found: Mapping[str, Scored], size: int) -> dict[str, IntArray]:
    """New less stable of each device, 0 where an arm has too little."""
    differences: dict[str, IntArray] = {}
    for name, one in found.items():
        has = one.has[:size] & one.has[size:]
        if has.any():
            differences[name] = np.where(has, one.score[:size] - one.score[size:], 0)
    return differences


def _flipped(ring: Ring, differences: Mapping[str, IntArray]) -> Statistic | None:
    """Sums of the differences for the real naming and for each swapped one."""
    flips = _flips(ring.seed, ring.virtual, ring.size)
    distances: dict[str, FloatArray] = {}
    for name, difference in differences.items():
        values = difference.astype(np.float64)  # integers below 2^53, also their sums: exact
        sums = np.empty(ring.virtual + 1)
        sums[0] = values.sum()
        rows = max(1, _CHUNK_CELLS // max(1, ring.size))
        for start in range(0, ring.virtual, rows):
            bits = np.unpackbits(flips[start : start + rows], axis=1, count=ring.size)
            sums[1 + start : 1 + start + len(bits)] = sums[0] - 2 * (bits @ values)
        distances[name] = sums
    return worst_of(distances)


@lru_cache(maxsize=4)
def _flips(seed: bytes, virtual: int, size: int) -> npt.NDArray[np.uint8]:
    """Coins, a row of packed bits for each swapped naming."""
    words = (size + 63) // 64
    stream = np.random.PCG64(int.from_bytes(seed, "big"))
    coins = stream.random_raw(virtual * words).astype("<u8").reshape(virtual, words)
    packed = coins.view(np.uint8)
    packed.setflags(write=False)
    return packed


def _doubled(ring: Ring) -> Ring:
    """A ring with two entries a device, new arms first, to tell the arms as any others are told."""
    size = ring.size
    return replace(
        ring,
        device_ids=(*ring.device_ids, *(f"{device_id} (stable)" for device_id in ring.device_ids)),
        strata=np.zeros(2 * size, dtype=np.int16),
        stratum_names=("",),
        cohort=np.arange(2 * size) < size,
        drawn_from=2 * size,
        percent_bp=5000,
        baseline={
            name: Baseline(np.tile(one.p, 2), one.mu, one.kappa, one.known)
            for name, one in ring.baseline.items()
        },
    )


def _stacked(ring: Ring, arms: ArmCounts) -> Counts:
    new, stable = arms.new, arms.stable
    nothing = np.zeros(ring.size, dtype=np.bool_)
    reported = [nothing if counts.reported is None else counts.reported for counts in (new, stable)]
    known = new.reported is not None or stable.reported is not None
    return Counts(
        bad=_joined(new.bad, stable.bad),
        total=_joined(new.total, stable.total),
        level={
            name: np.concatenate([new.level[name], stable.level[name]])
            for name in new.level
            if name in stable.level
        },
        reported=np.concatenate(reported) if known else None,
    )


def _joined(new: Mapping[str, IntArray], stable: Mapping[str, IntArray]) -> dict[str, IntArray]:
    return {name: np.concatenate([new[name], stable[name]]) for name in new if name in stable}
