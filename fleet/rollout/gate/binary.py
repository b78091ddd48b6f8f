"""Outcomes a device has once: install failed, crash loop, silent, reverted itself. Pure.

Rules kept here: judged against a failure budget by a bet that may be looked at after every device;
silence is also held against control, because a network takes down both arms.
"""

from typing import Final

import numpy as np

from fleet.rollout.gate.ring import BoolArray, FloatArray
from fleet.rollout.gate.tails import beta_quantile, hypergeometric_tail

__all__ = ["KINDS", "LEAST_BUDGET", "alarm_level", "e_process", "failure_budget", "silence_tail"]

KINDS: Final = 4  # install failure, crash loop, silence, self-revert: alpha is split among them
LEAST_BUDGET: Final = 0.01
_FACTORS: Final = (1.5, 2.0, 4.0, 8.0)
_RATES: Final = (0.25, 0.5, 0.9)


def e_process(outcomes: BoolArray, p0: float) -> FloatArray:
    """The running wealth W of a bet against "at most ``p0`` of devices fail": shape (devices,).

    ``outcomes`` in completion order, true for a failure. W_n is the mean over q of the product of
    q/p0 for a failure and (1 - q)/(1 - p0) for a success, q in {1.5, 2, 4, 8} p0 and {0.25, 0.5, 0.9}
    as far as they lie between p0 and 1. The chance that W ever reaches 1/a is at most a (Ville's
    inequality; Ramdas et al., "Game-theoretic statistics and safe anytime-valid inference",
    Statistical Science 38, 2023).

    Raises:
        ValueError: p0 is not between 0 and 1.
    """
    if not 0 < p0 < 1:
        raise ValueError(f"a failure budget of {p0:g} is no rate: write one above 0 and below 1")
    rates = {q for q in (*(factor * p0 for factor in _FACTORS), *_RATES) if p0 < q < 1}
    failed = np.asarray(outcomes, dtype=np.bool_)
    if not rates:  # the budget is 0.9 or more: nothing would break it
        return np.ones(len(failed))
    logs = [
        np.cumsum(np.where(failed, np.log(q / p0), np.log((1 - q) / (1 - p0))))
        for q in sorted(rates)
    ]
    wealth: FloatArray = np.exp(np.minimum(np.array(logs), 700.0)).mean(axis=0)
    return wealth


def alarm_level(alpha: float) -> float:
    """The wealth at which one kind of outcome alarms: 4/alpha, alpha shared by the four kinds."""
    return KINDS / alpha


def failure_budget(failed: int, finished: int) -> float:
    """p0 from past rollouts: the upper 95 % bound of Jeffreys' interval, at least 1 %.

    The quantile of Beta(failed + 1/2, finished - failed + 1/2) (Brown, Cai and DasGupta, "Interval
    Estimation for a Binomial Proportion", Statistical Science 16, 2001). Without past rollouts 1 %.
    """
    if finished <= 0:
        return LEAST_BUDGET
    if failed >= finished:
        return 0.9
    bound = beta_quantile(0.95, failed + 0.5, finished - failed + 0.5)
    return max(LEAST_BUDGET, min(bound, 0.9))


def silence_tail(silent: tuple[int, int], devices: tuple[int, int]) -> float:
    """How likely so many silent devices, or more, in the cohort are if silence picks at random.

    Both pairs are (cohort, control). An alarm at alpha_ring/K.
    """
    return hypergeometric_tail(silent[0], sum(silent), devices[0], sum(devices))
