"""Whether a freshly swapped bundle may stay. Pure: values in, one judgement out.

Rules kept here:
- Chance alone takes back no good model. A rate measured on few requests lies above its limit often; what
  counts is how likely so large a count is when the true rate equals the limit (the one-sided exact binomial
  test, see ``binomial``). Before its time is over a bundle fails only on a count that is as good as impossible
  (``EARLY_CHANCE``: it is looked at often), at the last look on one that is improbable (``LAST_CHANCE``).
  So with ``looks`` looks a bundle whose rate equals its limit fails by chance with a probability of at most
  ``looks * EARLY_CHANCE + LAST_CHANCE`` an objective (Bonferroni), and far more seldom below its limit.
- Nothing passes before its time. A limit that is not a number counts as exceeded: guards fail closed.
- Too few requests at the end of the time: a bundle that asks for none passes, one that asks for some waits up to
  ``PATIENCE`` times its probation and then passes with a reason that says so. What is beyond chance is never forgiven.
- A run counts only when it ends. While one of the bundle takes longer than its objective, nothing passes: a bundle that
  hangs on its only request has no failure yet. That lasts ``STUCK_S`` at most, which is longer than the model server
  lets any run last, or as long as the patience; a bundle that still has such a run then fails.
- Requests that break the input contract are the caller's fault and never count against the bundle.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from agent.binomial import upper_tail
from agent.bundle import Objectives

__all__ = [
    "EARLY_CHANCE",
    "EARLY_REQUESTS",
    "LAST_CHANCE",
    "PATIENCE",
    "STUCK_S",
    "ProbationJudgement",
    "ProbationTotals",
    "ProbationVerdict",
    "judge",
]

EARLY_REQUESTS: Final = 10
"""Fewest requests on which a bundle may fail before its probation is over."""

EARLY_CHANCE: Final = 0.001
"""Chance under the limit at or below which a count fails a bundle before its probation is over."""

LAST_CHANCE: Final = 0.05
"""The same, at the last look."""

PATIENCE: Final = 10
"""How many times its probation a bundle that asks for requests waits for them."""


STUCK_S: Final = 120.0
"""How long a bundle whose runs do not end is waited for at most, where that is longer than the patience."""


class ProbationVerdict(Enum):
    PASS = "pass"  # noqa: S105 (a verdict, not a password)
    FAIL = "fail"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class ProbationTotals:
    """What the bundle did since the swap: sums over all drained windows of its manifest digest. ``stuck`` is no sum: it
    is how many runs took longer than the latency objective at the last drain."""

    requests: int = 0
    failures: int = 0
    over_objective: int = 0
    output_violations: int = 0
    non_finite: int = 0
    input_violations: int = 0
    stuck: int = 0


@dataclass(frozen=True, slots=True)
class ProbationJudgement:
    """``reason_code`` is for machines (``probation_error_rate``), ``reason`` for people."""

    verdict: ProbationVerdict
    reason_code: str
    reason: str


def judge(objectives: Objectives, totals: ProbationTotals, elapsed_s: float) -> ProbationJudgement:
    """Judge a bundle ``elapsed_s`` seconds after its swap.

    Outputs that are not finite are held to the same limit as outputs outside the contract.
    """
    wanted = max(objectives.probation_min_requests, EARLY_REQUESTS)
    over_time = elapsed_s >= objectives.probation_s
    patience_s = objectives.probation_s * PATIENCE
    short = totals.requests < objectives.probation_min_requests
    last_look = over_time and (not short or elapsed_s >= patience_s)
    above = [look for look in _looks(objectives, totals) if look.is_above_limit]
    if totals.requests >= wanted or last_look:
        chance = LAST_CHANCE if last_look else EARLY_CHANCE
        for look in above:
            if look.chance <= chance:
                return look.failed()
    if not over_time:
        left_s = objectives.probation_s - elapsed_s
        return ProbationJudgement(
            ProbationVerdict.WAIT,
            "probation_running",
            f"{left_s:.0f} s of probation left, {totals.requests} requests",
        )
    if totals.stuck:
        return _stuck(totals, elapsed_s, max(patience_s, STUCK_S))
    kept = f"{'; '.join(map(str, above))}: may be chance" if above else "every objective kept"
    if not short:
        return ProbationJudgement(
            ProbationVerdict.PASS,
            "probation_passed",
            f"{totals.requests} requests in {elapsed_s:.0f} s; {kept}",
        )
    if not last_look:
        return ProbationJudgement(
            ProbationVerdict.WAIT,
            "probation_few_requests",
            f"{totals.requests} of {objectives.probation_min_requests} requests; waiting up to {patience_s:.0f} s",
        )
    return ProbationJudgement(
        ProbationVerdict.PASS,
        "probation_passed_few_requests",
        f"only {totals.requests} of {objectives.probation_min_requests} requests in {elapsed_s:.0f} s; "
        f"{kept}",
    )


def _stuck(totals: ProbationTotals, elapsed_s: float, limit_s: float) -> ProbationJudgement:
    waiting = elapsed_s < limit_s
    return ProbationJudgement(
        ProbationVerdict.WAIT if waiting else ProbationVerdict.FAIL,
        "probation_stuck",
        f"{totals.stuck} runs take longer than the latency objective and have not ended after {elapsed_s:.0f} s of "
        f"probation" + (f"; waiting up to {limit_s:.0f} s" if waiting else ""),
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """One count of requests against its limit; as text what it found."""

    code: str
    what: str
    count: int
    requests: int
    limit: float

    @property
    def is_above_limit(self) -> bool:
        return not self.count <= self.limit * self.requests or not self.limit >= 0

    @property
    def chance(self) -> float:
        """How likely so large a count is when the true rate is the limit."""
        if not self.limit >= 0:  # also what is not a number
            return 0.0
        # A count larger than the requests is a broken counter: it has no chance at all.
        return upper_tail(self.count, self.requests, min(self.limit, 1.0))

    def failed(self) -> ProbationJudgement:
        return ProbationJudgement(ProbationVerdict.FAIL, self.code, str(self))

    def __str__(self) -> str:
        rate = self.count / self.requests if self.requests else float(self.count > 0)
        return (
            f"{self.count} of {self.requests} requests {self.what}: {rate:.2%}, "
            f"at most {self.limit:.2%} allowed"
        )


def _looks(objectives: Objectives, totals: ProbationTotals) -> tuple[_Look, ...]:
    violations = objectives.max_output_violation_rate
    slow = f"took longer than {objectives.latency_ms:g} ms"
    checks = (
        ("probation_error_rate", "failed", totals.failures, objectives.max_error_rate),
        ("probation_non_finite", "had outputs that are not finite", totals.non_finite, violations),
        ("probation_output_violations", "had outputs outside the contract",
         totals.output_violations, violations),
        ("probation_latency", slow, totals.over_objective, objectives.max_over_latency_rate),
    )  # fmt: skip
    return tuple(
        _Look(code, what, count, totals.requests, limit) for code, what, count, limit in checks
    )
