"""Does the gate keep its word? ``python -m benchmarks.gate_mde [--rings N] [--publish]``.

Three things that a formula promises, measured on drawn fleets (2,000 devices, rates Beta with mean 2 % and intra-class
correlation 0.02, 30 requests a minute, bakes of an hour): the power at the smallest effect that a ring says it can
find; the share of rings that fail when the bundle changes nothing; and whether the rank of the real cohort is uniform
although its devices report every 15 s and most others every 60 s.
"""

import argparse
import json
import math
import multiprocessing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from benchmarks.results_file import RESULTS, put_section
from fleet.rollout.gate.exposure import open_exposure
from fleet.rollout.gate.look import look
from fleet.rollout.gate.ring import Counts, State
from fleet.rollout.gate.verdict import Verdict
from tests.support.rings import (
    Setting,
    cohort_factor,
    exposed,
    play,
    population,
    raw_counts,
    windows_of,
)

FLEET: Final = Setting(size=2000, canaries=20, alpha=0.01 / 3)
SIZES: Final = (20, 100, 500)
ALPHAS: Final = (0.01, 0.05)
PACES_AT_S: Final = (150.0, 210.0, 390.0)


@dataclass(frozen=True, slots=True)
class Power:
    """``found`` of ``rings`` whose rates were multiplied by ``factor``, the one predicted."""

    canaries: int
    factor: float
    found: int
    rings: int
    median_minutes: float

    @property
    def share(self) -> float:
        return self.found / self.rings


@dataclass(frozen=True, slots=True)
class Ranks:
    """Shares of ranks of the real cohort that are at most 1 % and 5 % when nothing has changed."""

    way: str
    at_s: float
    shares: tuple[float, ...]
    mean: float
    rings: int


def predicted(setting: Setting, seed: int, rings: int = 5) -> float:
    """The smallest effect that rings say they can find at the end of their bakes, averaged."""
    told = []
    for number in range(rings):
        rng = np.random.default_rng([seed, 1, number])
        *_, (result, _, _) = play(rng, population(rng, setting))
        if result.metrics[0].smallest is not None:
            told.append(result.metrics[0].smallest)
    return float(np.mean(told))


def power(setting: Setting, factor: float, seed: int, rings: int) -> Power:
    """How many rings with this effect fail, and when."""
    found: list[float] = []
    for number in range(rings):
        rng = np.random.default_rng([seed, 2, number])
        drawn = population(rng, replace(setting, rollout_id=f"p{seed}-{number}"))
        *_, (result, _, _) = play(rng, drawn, cohort_factor(drawn.ring, factor))
        if result.verdict is Verdict.FAIL:
            found.append(drawn.ring.looks_s[result.look - 1] / 60)
    middle = float(np.median(found)) if found else math.nan
    return Power(setting.canaries, factor, len(found), rings, middle)


def false_alarms(setting: Setting, seed: int, rings: int) -> int:
    """How many rings fail although the bundle changes nothing."""
    return power(setting, 1.0, seed, rings).found


def ranks(setting: Setting, at_s: float, seed: int, rings: int) -> dict[str, Ranks]:
    """Ranks of the real cohort when it and as many others report four times as often.

    With sums at equal exposure, and with plain sums of what has arrived.
    """
    first = population(np.random.default_rng(seed), setting)
    blank = open_exposure(first.ring.seed, 0.0, first.ring.device_ids, first.ring.metrics)
    found: dict[str, list[float]] = {"equal": [], "plain": []}
    for number in range(rings):
        rng = np.random.default_rng([seed, 3, number])
        drawn = population(rng, setting)
        others = np.flatnonzero(~drawn.ring.cohort)
        fast = drawn.ring.cohort.copy()
        fast[rng.choice(others, setting.canaries, replace=False)] = True
        windows = windows_of(rng, drawn, fast, at_s, aligned=number % 2 == 1)
        ways: dict[str, Counts] = {
            "equal": exposed(blank, windows),
            "plain": raw_counts(drawn, windows),
        }
        for way, counts in ways.items():
            found[way].append(look(drawn.ring, State(), counts, 1)[0].p_value)
    return {
        way: Ranks(
            way,
            at_s,
            tuple(float(np.mean(np.array(values) <= alpha)) for alpha in ALPHAS),
            float(np.mean(values)),
            rings,
        )
        for way, values in found.items()
    }


@dataclass(frozen=True, slots=True)
class Results:
    """Everything of one run."""

    power: tuple[Power, ...]
    alarms: tuple[tuple[int, int, int], ...]  # canary devices, alarms, rings
    alpha: float
    ranks: tuple[Ranks, ...]


def _power_at(job: tuple[int, int]) -> Power:
    canaries, rings = job
    setting = replace(FLEET, canaries=canaries)
    return power(setting, predicted(setting, canaries), canaries, rings)


def _alarms_at(job: tuple[int, int]) -> tuple[int, int, int]:
    canaries, rings = job
    return canaries, false_alarms(replace(FLEET, canaries=canaries), 7 + canaries, rings), rings


def _ranks_at(job: tuple[float, int]) -> list[Ranks]:
    at_s, rings = job
    return list(ranks(replace(FLEET, canaries=100), at_s, 11, rings).values())


def _fewer(rings: int, canaries: int) -> int:
    """Large cohorts take longer: fewer rings of them."""
    return max(1, rings // (1 if canaries < 100 else 2 if canaries < 500 else 5))


def run(rings: int, jobs: int) -> Results:
    """All of it, in ``jobs`` processes."""
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        powers = pool.map(_power_at, [(size, _fewer(rings // 5, size)) for size in SIZES], 1)
        alarms = pool.map(_alarms_at, [(size, _fewer(rings, size)) for size in SIZES], 1)
        found = pool.map(_ranks_at, [(at_s, rings) for at_s in PACES_AT_S], 1)
    flat = tuple(one for group in found for one in group)
    return Results(tuple(powers), tuple(alarms), FLEET.alpha, flat)


def markdown(results: Results) -> str:
    """The section for results.md."""
    lines = [
        "## What the gate promises",
        "",
        "`python -m benchmarks.gate_mde --publish`",
        "",
        "Drawn fleets of 2,000 devices: rates Beta with mean 2 % and intra-class correlation 0.02, 30 requests a "
        f"minute, bakes of an hour, one ring of a rollout of three (alpha {results.alpha:.4f}). Everything is drawn "
        "from fixed seeds: the same numpy gives the same figures on any machine.",
        "",
        "| canary devices | smallest effect the ring says it can find | found at that effect (goal 0.80 to 0.97) | "
        "median time to find it |",
        "|---|---|---|---|",
        *(
            f"| {one.canaries} | {one.factor:.2f}x | {one.share:.2f} of {one.rings} rings | "
            f"{one.median_minutes:.0f} min |"
            for one in results.power
        ),
        "",
        "Nothing changed, all looks of a ring:",
        "",
        "| canary devices | rings that failed | allowed |",
        "|---|---|---|",
        *(_alarm_row(one, results.alpha) for one in results.alarms),
        "",
        "Nothing changed, 100 canary devices and 100 others report every 15 s, the others every 60 s, in "
        "every second ring from its start on: shares of rings in which the rank of the cohort is at most 1 % and 5 %.",
        "",
        "| look at | counted | at most 1 % | at most 5 % | mean rank |",
        "|---|---|---|---|---|",
        *(
            f"| {one.at_s:.0f} s | {'whole minutes' if one.way == 'equal' else 'as it arrives (not used)'} | "
            f"{100 * one.shares[0]:.1f} % | {100 * one.shares[1]:.1f} % | {one.mean:.2f} |"
            for one in results.ranks
        ),
        "",
        f"Each share is of {results.ranks[0].rings} rings: one standard error is "
        f"{100 * math.sqrt(0.01 * 0.99 / results.ranks[0].rings):.2f} and "
        f"{100 * math.sqrt(0.05 * 0.95 / results.ranks[0].rings):.2f} points.",
    ]
    return "\n".join(lines)


def _alarm_row(found: tuple[int, int, int], alpha: float) -> str:
    canaries, alarms, rings = found
    error = math.sqrt(alpha * (1 - alpha) / rings)
    return (
        f"| {canaries} | {alarms} of {rings} ({100 * alarms / rings:.2f} %) | {100 * alpha:.2f} % "
        f"(three standard errors more: {100 * (alpha + 3 * error):.2f} %) |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then print and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rings", type=int, default=1000, help="of each kind; fewer of large ones")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--publish", action="store_true", help="write benchmarks/results.md")
    options = parser.parse_args(arguments)
    results = run(options.rings, options.jobs)
    if options.publish:
        put_section(RESULTS, "gate", markdown(results))
    shown: Any = asdict(results)
    print(json.dumps(shown) if options.json else markdown(results))


if __name__ == "__main__":
    main()
