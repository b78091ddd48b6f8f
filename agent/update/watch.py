"""Bundles on probation, and arms beside: what they did since then, and when to look at them next.

Rules kept here:
- An arm is held to the same objectives as a bundle on probation, for as long as it answers its share. It is looked at
  when its requests have doubled since the last look, so that chance does not fail it in the long run.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from agent.bundle import Objectives
from agent.health.probation import (
    EARLY_REQUESTS,
    PATIENCE,
    ProbationJudgement,
    ProbationTotals,
    ProbationVerdict,
    judge,
)
from agent.ports import ServedWindow

__all__ = ["ProbationWatch"]


@dataclass(frozen=True, slots=True)
class _Run:
    manifest_sha256: str
    objectives: Objectives
    began_s: float
    role: str = ""
    look_at: int = EARLY_REQUESTS
    totals: ProbationTotals = field(default_factory=ProbationTotals)


class ProbationWatch:
    """One run a model; windows of any other bundle are not counted."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}

    def begin(
        self,
        model: str,
        manifest_sha256: str,
        objectives: Objectives,
        monotonic_s: float,
        role: str = "",
    ) -> None:
        """The bundle was just activated, or began to answer its share as an arm."""
        self._runs[model] = _Run(manifest_sha256, objectives, monotonic_s, role)

    def began_s(self, model: str) -> float:
        """When the probation of ``model`` began, monotonic seconds."""
        return self._runs[model].began_s

    def end(self, model: str) -> None:
        self._runs.pop(model, None)

    def observe(self, windows: Iterable[ServedWindow]) -> bool:
        """Add what was drained. True when a bundle on probation was among it."""
        seen = False
        for window in windows:
            run = self._runs.get(window.model)
            if run is None or run.manifest_sha256 != window.manifest_sha256:
                continue
            if run.role != window.role:
                continue  # what it did beside the active version is not what it does as the active one
            seen = True
            self._runs[window.model] = replace(run, totals=_added(run.totals, window))
        return seen

    def judge(self, model: str, monotonic_s: float) -> tuple[ProbationJudgement, float | None]:
        """The judgement now, and in how many seconds time alone may change it (None: never)."""
        run = self._runs[model]
        elapsed_s = monotonic_s - run.began_s
        judgement = judge(run.objectives, run.totals, elapsed_s)
        looks = (run.objectives.probation_s, run.objectives.probation_s * PATIENCE)
        ahead = [look - elapsed_s for look in looks if look > elapsed_s]
        return judgement, min(ahead) if ahead else None

    def judge_arm(self, model: str) -> ProbationJudgement | None:
        """How the arm of ``model`` broke its objectives; None while it keeps them or may by chance alone."""
        run = self._runs.get(model)
        if run is None or run.totals.requests < run.look_at:
            return None
        self._runs[model] = replace(run, look_at=2 * run.totals.requests)
        judgement = judge(replace(run.objectives, probation_s=math.inf), run.totals, 0.0)
        return judgement if judgement.verdict is ProbationVerdict.FAIL else None


def _added(totals: ProbationTotals, window: ServedWindow) -> ProbationTotals:
    return ProbationTotals(
        requests=totals.requests + window.requests,
        failures=totals.failures + window.failures,
        over_objective=totals.over_objective + window.over_objective,
        output_violations=totals.output_violations + window.output_violations,
        non_finite=totals.non_finite + window.non_finite,
        input_violations=totals.input_violations + window.input_violations,
        stuck=window.stuck,
    )
