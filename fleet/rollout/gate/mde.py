"""The smallest effect a ring can find, and the effect it has found, as factors. Pure.

Rules kept here: the smallest effect is computed from control alone, so it is the same whether the
bundle is good or bad; a factor multiplies the rate (or level) of every device; what cannot be said is
infinite, never small.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from fleet.rollout.gate.ring import FloatArray
from fleet.rollout.gate.scores import rank_normal
from fleet.rollout.gate.tails import normal_quantile

__all__ = ["MOST", "level_effect", "rate_effect", "smallest_effect", "smallest_level_effect"]

MOST: Final = 1000.0  # factors beyond are "any": infinite
_POWER: Final = 0.9
_LOOKS: Final = 8.0  # what one look has of alpha, as far as power goes
_INTERVAL_Z: Final = 1.6448536269514722  # 90 %, two-sided
_STEPS: Final = 60
_CLOSE: Final = 1e-10


def smallest_effect(v: FloatArray, canaries: int, size: int, alpha: float) -> float:
    """The factor on every rate that a test spending ``alpha`` finds with 90 % power.

    ``v`` = y/p of control devices, ``canaries`` of ``size`` devices with data are in the cohort.
    Solves mean ln(1 + r v) - mean ln(1 + v) = (z(alpha/8) + z(0.9)) sd ln(1 + v)/sqrt(n (1 - n/N)):
    the test compares the cohort with the pool, whose mean the effect moves by n/N of its size, and
    the mean of n of N has variance (1 - n/N) s^2/n. alpha/8 stands for what an alarm at
    one of many looks needs: with alpha/4 one of five such effects was missed at 20 devices.
    """
    if len(v) == 0 or float(v.max()) <= 0:  # no factor of nothing is something
        return math.inf
    scores = np.log1p(v)
    rise = _detectable(scores, canaries, size, alpha)
    return _factor(v, float(scores.mean()) + rise) if math.isfinite(rise) else math.inf


def smallest_level_effect(
    level: FloatArray, past: FloatArray, sizes: tuple[int, int], alpha: float
) -> float:
    """The same for a level: the factor that moves the normal scores of the changes far enough.

    ``level`` and ``past`` of control devices; ``sizes`` are (canaries, all) with data.
    """
    changes = level - past
    if len(level) < 2 or float(level.mean()) <= 0:
        return math.inf
    scores = rank_normal(changes)
    rise = _detectable(scores, *sizes, alpha)
    ordered, ordered_scores = np.sort(changes), np.sort(scores)

    def moved(factor: float) -> float:
        shifted = np.interp(factor * level - past, ordered, ordered_scores)
        return float(shifted.mean() - scores.mean())

    return _bisect(moved, rise) if math.isfinite(rise) else math.inf


def _detectable(scores: FloatArray, canaries: int, size: int, alpha: float) -> float:
    """How far the mean of the cohort's scores must rise to be found."""
    if len(scores) < 2 or not 0 < canaries < size:
        return math.inf
    share = canaries / size
    reach = normal_quantile(1 - alpha / _LOOKS) + normal_quantile(_POWER)
    return reach * float(scores.std(ddof=1)) / math.sqrt(canaries * (1 - share))


def _bisect(rise: Callable[[float], float], wanted: float) -> float:
    low, high = 0.0, math.log(MOST)
    if rise(MOST) < wanted:
        return math.inf
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if rise(math.exp(middle)) < wanted:
            low = middle
        else:
            high = middle
    return math.exp(high)


def _factor(v: FloatArray, mean_score: float) -> float:
    """r with mean ln(1 + r v) = ``mean_score``; 0 below what any r reaches, infinite above ``MOST``.

    Newton's method for ln r: the function is convex and rises, so after one step the iterates come
    down to the root.
    """
    if mean_score <= 0:
        return 0.0
    if float(np.log1p(v * MOST).mean()) < mean_score:
        return math.inf
    at = 0.0
    for _ in range(_STEPS):
        scaled = v * math.exp(at)
        slope = float((scaled / (1 + scaled)).mean())
        gap = mean_score - float(np.log1p(scaled).mean())
        if slope <= 0:
            return math.inf
        step = gap / slope
        at = min(max(at + step, -math.log(MOST)), math.log(MOST))
        if abs(step) < _CLOSE:
            break
    return math.exp(at)


def rate_effect(cohort: FloatArray, control: FloatArray) -> tuple[float, float, float]:
    """By how much control's rates would have to be multiplied to look like the cohort's.

    ``cohort`` and ``control`` are v = y/p. Returns the factor and its 90 % interval, from the normal
    interval of the difference of the mean scores; (nan, nan, nan) with fewer than two devices a side.
    """
    if min(len(cohort), len(control)) < 2:
        return (math.nan, math.nan, math.nan)
    ours, theirs = np.log1p(cohort), np.log1p(control)
    spread = ours.var(ddof=1) / len(ours) + theirs.var(ddof=1) / len(theirs)
    error = _INTERVAL_Z * math.sqrt(float(spread))
    mean = float(ours.mean())
    if float(theirs.max()) <= 0:  # none in control: no factor of nothing is something
        return (math.inf if mean > 0 else math.nan, math.nan, math.inf)
    return (
        _factor(control, mean),
        _factor(control, mean - error),
        _factor(control, mean + error),
    )


def level_effect(
    cohort: tuple[FloatArray, FloatArray], control: tuple[FloatArray, FloatArray]
) -> tuple[float, float, float]:
    """The cohort's mean level over what it would be had it changed as control did, with 90 % interval.

    Both pairs are (level now, level before).
    """
    if min(len(cohort[0]), len(control[0])) < 2:
        return (math.nan, math.nan, math.nan)
    ours, theirs = cohort[0] - cohort[1], control[0] - control[1]
    expected = float(cohort[1].mean() + theirs.mean())
    if expected <= 0:
        return (math.nan, math.nan, math.nan)
    spread = ours.var(ddof=1) / len(ours) + theirs.var(ddof=1) / len(theirs)
    error = _INTERVAL_Z * math.sqrt(float(spread))
    change = float(ours.mean() - theirs.mean())
    low, high = (1 + (change + sign * error) / expected for sign in (-1, 1))
    return (1 + change / expected, low, high)
