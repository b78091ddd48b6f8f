"""What each metric looks like in both arms: told at every look, and never what decides it. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fleet.rollout.gate.judged import Judged
from fleet.rollout.gate.mde import (
    level_effect,
    rate_effect,
    smallest_effect,
    smallest_level_effect,
)
from fleet.rollout.gate.metrics import Kind, Metric, metric_of
from fleet.rollout.gate.result import Arm, MetricResult
from fleet.rollout.gate.ring import POOLED, BoolArray, Counts, Ring
from fleet.rollout.gate.scores import Scored

__all__ = ["View", "planned_effects"]


@dataclass(frozen=True, slots=True)
class View:
    """A look at the devices ``within`` (a mask over the pool): scores by metric, None for no data."""

    ring: Ring
    counts: Counts
    found: Mapping[str, Scored]
    within: BoolArray

    def metrics(self, judged: Judged) -> tuple[MetricResult, ...]:
        """One result for each metric of the ring, with z and p-value of this test."""
        return tuple(self._metric(metric_of(name), judged) for name in self.ring.metrics)

    def _metric(self, metric: Metric, judged: Judged) -> MetricResult:
        one = self.found.get(metric.name)
        has = self.within & one.has if one is not None else np.zeros_like(self.within)
        arms = (has & self.ring.cohort, has & ~self.ring.cohort)
        effect = low = high = smallest = math.nan
        if one is not None:
            effect, low, high = self._effect(metric, one, arms)
            smallest = self._smallest(metric, one, arms)
        return MetricResult(
            name=metric.name,
            words=metric.words,
            kind=metric.kind,
            cohort=self._arm(metric, arms[0]),
            control=self._arm(metric, arms[1]),
            z=judged.z.get(metric.name),
            p_value=judged.p_values.get(metric.name, 1.0),
            effect=_known(effect),
            low=_known(low),
            high=_known(high),
            smallest=_known(smallest),
            tolerance=self.ring.tolerances.get(metric.name),
        )

    def _arm(self, metric: Metric, devices: BoolArray) -> Arm:
        number = int(np.count_nonzero(devices))
        if number == 0:
            return Arm(0, 0, 0, None)
        if metric.kind is Kind.LEVEL:
            return Arm(number, 0, 0, float(self.counts.level[metric.name][devices].mean()))
        bad = int(self.counts.bad[metric.name][devices].sum())
        total = int(self.counts.total[metric.name][devices].sum())
        return Arm(number, bad, total, bad / total)

    def _effect(
        self, metric: Metric, one: Scored, arms: tuple[BoolArray, BoolArray]
    ) -> tuple[float, float, float]:
        ours, theirs = arms
        if metric.kind is Kind.RATE:
            return rate_effect(one.v[ours], one.v[theirs])
        level, past = self.counts.level[metric.name], self.ring.baseline[metric.name].p
        return level_effect((level[ours], past[ours]), (level[theirs], past[theirs]))

    def _smallest(self, metric: Metric, one: Scored, arms: tuple[BoolArray, BoolArray]) -> float:
        """The smallest effect, at the share of alpha each metric has when all compete for it."""
        alpha = self.ring.tests[POOLED] / max(1, len(self.found))
        canaries, control = (int(np.count_nonzero(arm)) for arm in arms)
        if metric.kind is Kind.RATE:
            return smallest_effect(one.v[arms[1]], canaries, canaries + control, alpha)
        level, past = self.counts.level[metric.name], self.ring.baseline[metric.name].p
        sizes = (canaries, canaries + control)
        return smallest_level_effect(level[arms[1]], past[arms[1]], sizes, alpha)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def planned_effects(ring: Ring, history: Counts) -> dict[str, float | None]:
    """About what a ring will be able to see, before it starts: by rate metric.

    ``history`` has the counts before the rollout in pool order. Rates of a long history vary less
    between devices than those of a short bake, so the ring itself will see a little less.
    """
    planned: dict[str, float | None] = {}
    alpha = ring.tests[POOLED] / max(1, len(ring.metrics))
    for name in ring.metrics:
        bad, total = history.bad.get(name), history.total.get(name)
        if metric_of(name).kind is not Kind.RATE or bad is None or total is None:
            continue
        has = (total > 0) & ~ring.cohort
        v = bad[has] / total[has] / ring.baseline[name].p[has]
        planned[name] = _known(smallest_effect(v, ring.canaries, ring.size, alpha))
    return planned
