"""Tails and quantiles of the distributions the gate needs, without scipy. Pure.

Rules kept here: each names its source; loops are bounded and stop at the precision of a float; good
to a relative 1e-8 or better where they are used, as the tests show against scipy.
"""

import math
from statistics import NormalDist
from typing import Final

__all__ = [
    "beta_quantile",
    "hypergeometric_tail",
    "incomplete_beta",
    "normal_quantile",
    "pearson3_tail",
    "upper_gamma",
]

_TINY: Final = 1e-300
_PRECISE: Final = 1e-15
_MAX_TERMS: Final = 20_000
_STRAIGHT: Final = 1e-3  # a skewness below is none: the error is under 1 % of the tail up to z = 4
_NORMAL: Final = NormalDist()


def normal_quantile(probability: float) -> float:
    """z with P(Z <= z) = ``probability``, 0 < probability < 1."""
    return _NORMAL.inv_cdf(probability)


def hypergeometric_tail(count: int, marked: int, drawn: int, size: int) -> float:
    """P(X >= ``count``) marked ones among ``drawn`` out of ``size`` of which ``marked`` are marked.

    The one-sided exact test of Fisher ("The Design of Experiments", 1935). Neighbouring terms differ
    by (marked - x)(drawn - x)/((x + 1)(size - marked - drawn + x + 1)).
    """
    least, most = max(0, drawn + marked - size), min(drawn, marked)
    if count <= least:
        return 1.0
    if count > most:
        return 0.0
    first = _ln_choose(marked, count) + _ln_choose(size - marked, drawn - count)
    term = total = math.exp(first - _ln_choose(size, drawn))
    for x in range(count, most):
        term *= (marked - x) * (drawn - x) / ((x + 1) * (size - marked - drawn + x + 1))
        total += term
        if term < total * _PRECISE and x > marked * drawn / size:
            break
    return min(1.0, total)


def _ln_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b), the distribution function of the beta distribution.

    The continued fraction 8.17.22 of the NIST Digital Library of Mathematical Functions, evaluated
    by Lentz's method; on the side of the mean where it converges fast.
    """
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - incomplete_beta(1 - x, b, a)
    ln_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(ln_front + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1.0 / _away(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, _MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = 1.0 / _away(1 + even * d), _away(1 + even / c)
        fraction *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1.0 / _away(1 + odd * d), _away(1 + odd / c)
        fraction *= d * c
        if abs(d * c - 1) < _PRECISE:
            break
    return front * fraction


def _away(value: float) -> float:
    """Not zero: Lentz's method divides by it."""
    return value if abs(value) > _TINY else _TINY


def beta_quantile(probability: float, a: float, b: float) -> float:
    """x with I_x(a, b) = ``probability``, by halving: 60 steps."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if incomplete_beta(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def upper_gamma(a: float, x: float) -> float:
    """Q(a, x), P(X > x) of a gamma variable of shape ``a`` and scale 1.

    Below a + 1 by the series 8.11.4, above by the continued fraction 8.9.2 of the NIST Digital Library
    of Mathematical Functions.
    """
    if x <= 0:
        return 1.0
    ln_front = a * math.log(x) - x - math.lgamma(a)
    if x < a + 1:
        term = total = 1 / a
        for n in range(1, _MAX_TERMS):
            term *= x / (a + n)
            total += term
            if term < total * _PRECISE:
                break
        return max(0.0, 1.0 - math.exp(ln_front) * total)
    b = x + 1 - a
    c, d = 1 / _TINY, 1 / b
    fraction = d
    for n in range(1, _MAX_TERMS):
        b += 2
        step = -n * (n - a)
        d, c = 1 / _away(step * d + b), _away(b + step / c)
        fraction *= d * c
        if abs(d * c - 1) < _PRECISE:
            break
    return math.exp(ln_front) * fraction


def pearson3_tail(z: float, skewness: float) -> float:
    """P(X >= ``z``) of Pearson's type III distribution with mean 0, deviation 1 and this skewness.

    With a = 4/skewness^2 it is a gamma variable of shape a, moved and scaled (Pearson, "Contributions
    to the Mathematical Theory of Evolution II", 1895), mirrored when the skewness is negative.
    """
    if abs(skewness) < _STRAIGHT:
        return 0.5 * math.erfc(z / math.sqrt(2))
    a = 4 / skewness**2
    if skewness > 0:
        return upper_gamma(a, a + z * math.sqrt(a))
    return 1.0 - upper_gamma(a, a - z * math.sqrt(a))
