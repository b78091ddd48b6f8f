"""How likely a count is under a rate: the exact binomial tail. Pure: numbers in, one number out.

Rules kept here: exact sums, no normal approximation (it is worst where it matters: few requests and
small rates); the work grows with the square root of the number of trials, never with the number.
"""

import math
from typing import Final

__all__ = ["upper_tail"]

_NEGLIGIBLE: Final = 1e-17  # of the sum so far: a term that no longer changes it


def upper_tail(count: int, trials: int, rate: float) -> float:
    """P(X >= ``count``) when each of ``trials`` happens with probability ``rate``, independently.

    P(X >= k | n, p) = sum over i = k..n of C(n, i) p^i (1 - p)^(n - i): the p-value of the
    one-sided exact binomial test (Clopper & Pearson, "The use of confidence or fiducial limits
    illustrated in the case of the binomial", Biometrika 26, 1934). Neighbouring terms differ by the
    factor (n - i) / (i + 1) * p / (1 - p), so one is computed by logarithms and the rest from it;
    the side of the mean that has less in it is summed.

    ``rate`` lies in 0..1 and ``trials`` is not negative.
    """
    if count <= 0:
        return 1.0
    if count > trials or rate <= 0:
        return 0.0
    if rate >= 1:
        return 1.0
    odds = rate / (1 - rate)
    if count > trials * rate:
        term = total = _probability(count, trials, rate)
        for i in range(count, trials):
            term *= (trials - i) / (i + 1) * odds
            total += term
            if term <= total * _NEGLIGIBLE:
                break
        return min(1.0, total)
    term = total = _probability(count - 1, trials, rate)
    for i in range(count - 1, 0, -1):
        term *= i / ((trials - i + 1) * odds)
        total += term
        if term <= total * _NEGLIGIBLE:
            break
    return max(0.0, 1.0 - total)


def _probability(count: int, trials: int, rate: float) -> float:
    """P(X = ``count``), with 0 < ``rate`` < 1."""
    ways = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
    return math.exp(ways + count * math.log(rate) + (trials - count) * math.log1p(-rate))
