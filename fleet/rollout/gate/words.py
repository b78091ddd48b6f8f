"""The reasons of a look, for people. Rules kept here: numbers of both arms in every alarm."""

import math
from collections.abc import Sequence

from fleet.rollout.gate.judged import Judged
from fleet.rollout.gate.metrics import Kind
from fleet.rollout.gate.result import Arm, MetricResult

__all__ = ["alarm_words", "calm_words", "factor", "p_words", "value_words"]


def factor(value: float) -> str:
    """``1.9x``"""
    if math.isinf(value):
        return "any factor"
    return f"{value:.3g}x"


def p_words(p_value: float) -> str:
    """``p = 0.0002``"""
    return f"p = {p_value:.2g}"


def value_words(arm: Arm, kind: Kind) -> str:
    """``2.1 %`` or a level."""
    if arm.value is None:
        return "no data"
    return f"{100 * arm.value:.3g} %" if kind is Kind.RATE else f"{arm.value:.4g}"


def alarm_words(judged: Judged, metrics: Sequence[MetricResult], virtual: int, of: str) -> str:
    """Why a test failed. ``of`` names the stratum, or is empty."""
    metric = next(metric for metric in metrics if metric.name == judged.driver)
    where = f" of {of}" if of else ""
    found = (
        f"the canary devices{where} have worse {metric.name}, {metric.words}: "
        f"{value_words(metric.cohort, metric.kind)} against "
        f"{value_words(metric.control, metric.kind)} without the bundle"
    )
    if metric.effect is not None and metric.low is not None and metric.high is not None:
        found += (
            f", {factor(metric.effect)} the expected ({factor(metric.low)} to "
            f"{factor(metric.high)})"
        )
    if virtual:
        found += (
            f"; {judged.above} of {virtual} random groups of as many devices were as bad, and an "
            f"alarm needs fewer than {judged.may_drop}"
        )
    return f"{found} ({p_words(judged.p_value)})"


def calm_words(judged: Judged, metrics: Sequence[MetricResult], look: tuple[int, int]) -> str:
    """Why there was none."""
    text = f"no difference between the arms at look {look[0]} of {look[1]}"
    metric = next((metric for metric in metrics if metric.name == judged.driver), None)
    if metric is None:
        return f"{text}: no canary device has reported enough yet"
    return (
        f"{text}; the nearest to one is {metric.name}, "
        f"{value_words(metric.cohort, metric.kind)} against "
        f"{value_words(metric.control, metric.kind)} ({p_words(judged.p_value)})"
    )
