"""How other tools decide, written from their descriptions, to be asked about the same data as our gate.

Rules kept here: a rule sees what its tool would see, the events of both arms summed up by the minute,
and nothing of single devices; it answers with the ring and minute in which it rolls back, or None;
its parameters are its tool's defaults, or set from the baseline where the tool has no default.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Protocol

import numpy as np

from simulator.virtual.windows import Bools, Floats, Ints, Windows

__all__ = [
    "ArgoAnalysis",
    "FixedThreshold",
    "FlaggerChecks",
    "KayentaJudge",
    "Minutes",
    "MixtureSprt",
    "Rollback",
    "Rule",
    "peers",
    "strict_peers",
    "tally_minutes",
]

MINUTE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Minutes:
    """One ring, minute by minute: bad and all events of the canary (new bundle) and of the control."""

    canary_bad: Ints
    canary_total: Ints
    control_bad: Ints
    control_total: Ints

    def __len__(self) -> int:
        return len(self.canary_bad)


@dataclass(frozen=True, slots=True)
class Rollback:
    """When a rule rolls back: the ring from 0, and how many of its minutes have passed."""

    ring: int
    minute: int


class Rule(Protocol):
    """A way to decide over a whole rollout."""

    @property
    def name(self) -> str: ...

    def judge(self, rings: Sequence[Minutes]) -> Rollback | None:
        """When it rolls back; None when it lets the rollout through."""
        ...


def peers(baseline_rate: float) -> tuple[Rule, ...]:
    """The rules of the study for a fleet whose devices have this error rate on average."""
    limit = 1.0 - 1.5 * baseline_rate
    return (
        FixedThreshold(),
        FlaggerChecks(min_success=limit),
        ArgoAnalysis(min_success=limit),
        KayentaJudge(),
        MixtureSprt(tau=0.5 * baseline_rate),
    )


def strict_peers(baseline_rate: float) -> tuple[Rule, ...]:
    """The same rules with limits so wide that about one good bundle in a hundred is rolled back.

    The limits are from simulated fleets of 2,000 devices of which no study uses the seeds. The
    mixture test has none: it counts requests, so what devices have in common it takes for evidence.
    """
    return (
        FixedThreshold(factor=2.0, name="fixed 2x threshold"),
        FlaggerChecks(min_success=1.0 - 2.25 * baseline_rate, name="Flagger's, limit 2.25x"),
        ArgoAnalysis(min_success=1.0 - 1.75 * baseline_rate, name="Argo's, limit 1.75x"),
        KayentaJudge(allowed_increase=1.6, name="Kayenta's, 1.6x allowed"),
        MixtureSprt(tau=0.5 * baseline_rate, alpha=1e-16, name="mSPRT, alpha 1e-16"),
    )


@dataclass(frozen=True, slots=True)
class FixedThreshold:
    """The canary's rate, since the ring began, is above ``factor`` times the control's.

    The rule that dashboards and alerts are written with. Looked at every minute, after ``warm_up_min``.
    """

    factor: float = 1.5
    warm_up_min: int = 5
    name: str = "fixed 1.5x threshold"

    def judge(self, rings: Sequence[Minutes]) -> Rollback | None:
        for number, ring in enumerate(rings):
            canary = _share(np.cumsum(ring.canary_bad), np.cumsum(ring.canary_total))
            control = _share(np.cumsum(ring.control_bad), np.cumsum(ring.control_total))
            over = canary > self.factor * control
            over[: self.warm_up_min - 1] = False
            if over.any():
                return Rollback(number, int(np.argmax(over)) + 1)
        return None


@dataclass(frozen=True, slots=True)
class FlaggerChecks:
    """Flagger: the success rate of every interval is checked, and ``threshold`` failed checks are enough.

    Flagger's ``analysis`` with ``interval: 1m``, ``threshold: 5`` and the built-in metric
    ``request-success-rate`` with ``thresholdRange.min``. Failed checks add up over the whole canary;
    they need not follow each other. Flagger's example has 99 % for services with almost no errors;
    ``min_success`` is set half as many errors again above the baseline.
    """

    min_success: float
    threshold: int = 5
    name: str = "Flagger's checks"

    def judge(self, rings: Sequence[Minutes]) -> Rollback | None:
        return _count_failures(rings, 1, self.min_success, self.threshold)


@dataclass(frozen=True, slots=True)
class ArgoAnalysis:
    """Argo Rollouts: a background analysis measures every interval, and more than ``failure_limit`` may not fail.

    The AnalysisTemplate of its documentation: ``interval: 5m``, ``successCondition: result >= LIMIT``
    over the last 5 minutes, ``failureLimit: 3``; it runs through all steps of the rollout.
    """

    min_success: float
    interval_min: int = 5
    failure_limit: int = 3
    name: str = "Argo's analysis"

    def judge(self, rings: Sequence[Minutes]) -> Rollback | None:
        failures = self.failure_limit + 1
        return _count_failures(rings, self.interval_min, self.min_success, failures)


def _count_failures(
    rings: Sequence[Minutes], interval_min: int, min_success: float, failures: int
) -> Rollback | None:
    """Roll back at the measurement that is the ``failures``-th below ``min_success``."""
    failed = 0
    for number, ring in enumerate(rings):
        for end in range(interval_min, len(ring) + 1, interval_min):
            total = int(ring.canary_total[end - interval_min : end].sum())
            bad = int(ring.canary_bad[end - interval_min : end].sum())
            failed += total > 0 and 1.0 - bad / total < min_success
            if failed >= failures:
                return Rollback(number, end)
    return None


@dataclass(frozen=True, slots=True)
class KayentaJudge:
    """Kayenta: the Netflix judge asks whether a metric's minutes lie higher on the canary (Mann-Whitney).

    A metric is *High* when the lower end of the ``confidence`` interval of the shift between the arms
    is above ``tolerance`` times the estimated shift (Hodges-Lehmann); the judge's own numbers are 0.98
    and 0.25. The score is the share of metrics that are not, so with one metric it is 100 or 0, and
    any pass mark fails at 0. ``allowed_increase`` is its effect size: a ratio of the means up to which
    a shift is let pass. Judged every ``interval_min`` over the ring so far (a growing lookback).
    """

    interval_min: int = 15
    confidence: float = 0.98
    tolerance: float = 0.25
    allowed_increase: float = 1.0
    name: str = "Kayenta's judge"

    def judge(self, rings: Sequence[Minutes]) -> Rollback | None:
        for number, ring in enumerate(rings):
            canary = _share(ring.canary_bad, ring.canary_total)
            control = _share(ring.control_bad, ring.control_total)
            for end in range(self.interval_min, len(ring) + 1, self.interval_min):
                if self._is_high(canary[:end], control[:end]):
                    return Rollback(number, end)
        return None

    def _is_high(self, canary: Floats, control: Floats) -> bool:
        canary, control = canary[~np.isnan(canary)], control[~np.isnan(control)]
        if not len(canary) or not len(control):
            return False
        if canary.mean() <= self.allowed_increase * control.mean():
            return False
        shifts = np.sort(np.subtract.outer(canary, control).ravel())
        lower = shifts[_confidence_rank(len(canary), len(control), self.confidence)]
        return bool(lower > self.tolerance * abs(float(np.median(shifts))))


def _confidence_rank(one: int, other: int, confidence: float) -> int:
    """Index of the pairwise difference at the lower end of the interval for the shift.

    The normal approximation of the Mann-Whitney statistic, mean mn/2 and variance mn(m+n+1)/12
    (Hollander and Wolfe, Nonparametric Statistical Methods, 4.3).
    """
    pairs = one * other
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    rank = pairs / 2.0 - z * math.sqrt(pairs * (one + other + 1) / 12.0)
    return max(0, math.floor(rank))


@dataclass(frozen=True, slots=True)
class MixtureSprt:
    """A mixture sequential probability ratio test on requests, the "always valid" test of A/B platforms.

    Johari, Pekelis and Walsh (Always Valid Inference, 2015): with difference d of the arms' rates and
    its variance V = p(1-p)(1/n + 1/m), the mixture over N(0, ``tau``^2) is
    sqrt(V/(V + tau^2)) exp(d^2 tau^2 / (2 V (V + tau^2))); beyond 1/alpha the arms differ. Looked at every
    minute; a rollback when the canary is the worse one. ``alpha`` is of the rollout, shared by its rings.
    """

    tau: float
    alpha: float = 0.01
    name: str = "request-level mSPRT"

    def judge(self, rings: Sequence[Minutes]) -> Rollback | None:
        limit = math.log(len(rings) / self.alpha) if rings else 0.0
        for number, ring in enumerate(rings):
            over = self._log_ratio(ring) > limit
            if over.any():
                return Rollback(number, int(np.argmax(over)) + 1)
        return None

    def _log_ratio(self, ring: Minutes) -> Floats:
        """The logarithm of the mixture after each minute; 0 while the canary is not worse."""
        bad, total = np.cumsum(ring.canary_bad), np.cumsum(ring.canary_total)
        other_bad, other_total = np.cumsum(ring.control_bad), np.cumsum(ring.control_total)
        worse = _share(bad, total) - _share(other_bad, other_total)
        both = _share(bad + other_bad, total + other_total)
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = both * (1.0 - both) * (1.0 / total + 1.0 / other_total)
            spread = variance + self.tau**2
            ratio = 0.5 * np.log(variance / spread)
            ratio += worse**2 * self.tau**2 / (2.0 * variance * spread)
        found: Floats = np.where((worse > 0) & np.isfinite(ratio), ratio, 0.0)
        return found


def _share(bad: Ints, total: Ints) -> Floats:
    """bad/total; nan where there were no events."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.where(total > 0, bad / np.maximum(total, 1), np.nan)
    return found


def tally_minutes(windows: Windows, canary: Bools, start_s: float, minutes: int) -> Minutes:
    """Failures and requests by the minute in which they arrived, as a metrics server would have them.

    Args:
        windows: of one ring, which began at ``start_s``.
        canary: the devices of the ring, by number. Of these only the windows of the new bundle count,
            as tools compare versions; of the others every window does.
        minutes: how many to tell apart; what arrives later is left out.
    """
    minute = ((windows.arrived_s - start_s) // MINUTE_S).astype(np.int64)
    new = windows.candidate & canary[windows.device]
    old = ~canary[windows.device]
    timely = (minute >= 0) & (minute < minutes)

    def add(which: Bools, counts: Ints) -> Ints:
        kept = which & timely
        return np.bincount(minute[kept], counts[kept], minutes).astype(np.int64)

    return Minutes(
        canary_bad=add(new, windows.failures),
        canary_total=add(new, windows.requests),
        control_bad=add(old, windows.failures),
        control_total=add(old, windows.requests),
    )
