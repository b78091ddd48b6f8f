"""Whether a freshly swapped bundle may stay. Pure: values in, one judgement out.

Rules kept here:
- A limit that is exceeded with enough requests fails at once, whatever time is left.
- Nothing passes before its time. A limit that is not a number counts as exceeded: guards fail closed.
- Too few requests at the end of the time: a bundle that asks for none passes, one that asks for some waits up to
  ``PATIENCE`` times its probation and then passes with a reason that says so. What did fail is never forgiven.
- Requests that break the input contract are the caller's fault and never count against the bundle.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from agent.bundle import Objectives

__all__ = [
    "EARLY_REQUESTS",
    "PATIENCE",
    "ProbationJudgement",
    "ProbationTotals",
    "ProbationVerdict",
    "judge",
]

EARLY_REQUESTS: Final = 10
"""Fewest requests on which a bundle may fail before its probation is over."""

PATIENCE: Final = 10
"""How many times its probation a bundle that asks for requests waits for them."""


class ProbationVerdict(Enum):
    PASS = "pass"  # noqa: S105 (a verdict, not a password)
    FAIL = "fail"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class ProbationTotals:
    """What the bundle did since the swap: sums over all drained windows of its manifest digest."""

    requests: int = 0
    failures: int = 0
    over_objective: int = 0
    output_violations: int = 0
    non_finite: int = 0
    input_violations: int = 0


@dataclass(frozen=True, slots=True)
class ProbationJudgement:
    """``reason_code`` is for machines (``probation_error_rate``), ``reason`` for people."""

    verdict: ProbationVerdict
    reason_code: str
    reason: str


def judge(objectives: Objectives, totals: ProbationTotals, elapsed_s: float) -> ProbationJudgement:
    """Judge a bundle ``elapsed_s`` seconds after its swap.

    Rates are counts divided by ``totals.requests``. Outputs that are not finite are held to the same limit as
    outputs outside the contract.
    """
    wanted = max(objectives.probation_min_requests, EARLY_REQUESTS)
    over_time = elapsed_s >= objectives.probation_s
    patience_s = objectives.probation_s * PATIENCE
    short = totals.requests < objectives.probation_min_requests
    last_look = over_time and (not short or elapsed_s >= patience_s)
    if totals.requests >= wanted or last_look:
        failed = _first_exceeded(objectives, totals)
        if failed is not None:
            return failed
    if not over_time:
        left_s = objectives.probation_s - elapsed_s
        return ProbationJudgement(
            ProbationVerdict.WAIT,
            "probation_running",
            f"{left_s:.0f} s of probation left, {totals.requests} requests",
        )
    if not short:
        return ProbationJudgement(
            ProbationVerdict.PASS,
            "probation_passed",
            f"{totals.requests} requests in {elapsed_s:.0f} s, every objective kept",
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
        f"none of them broke an objective",
    )


def _first_exceeded(objectives: Objectives, totals: ProbationTotals) -> ProbationJudgement | None:
    checks = (
        ("probation_error_rate", "failed", totals.failures, objectives.max_error_rate),
        ("probation_non_finite", "had outputs that are not finite", totals.non_finite,
         objectives.max_output_violation_rate),
        ("probation_output_violations", "had outputs outside the contract", totals.output_violations,
         objectives.max_output_violation_rate),
        ("probation_latency", f"took longer than {objectives.latency_ms:g} ms", totals.over_objective,
         objectives.max_over_latency_rate),
    )  # fmt: skip
    for code, what, count, limit in checks:
        # Without one request a count cannot exceed a rate; a count without requests is a broken counter and does.
        rate = count / totals.requests if totals.requests else float(count > 0)
        if not rate <= limit and (count or totals.requests):
            return ProbationJudgement(
                ProbationVerdict.FAIL,
                code,
                f"{count} of {totals.requests} requests {what}: {rate:.2%}, at most {limit:.2%} allowed",
            )
    return None
