"""The same scenario over many seeds: how often its rollout is rolled back, how soon, and who had it by then.

Rules kept here: a seed is a world of its own, so seeds can be simulated in any order and on any number
of processes; whether a rollback is right is a property of the scenario's candidate; a share comes with
its interval.
"""

import asyncio
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any, Final

from simulator.scenario import Scenario
from simulator.virtual.run import VirtualOutcome, check_virtual, run_virtual

__all__ = ["Share", "Study", "run_seeds", "summed_up"]

ROLLED_BACK: Final = "rolled_back"
PROMOTED: Final = "promoted"
Z: Final = 1.959964  # of the normal distribution, two-sided 95 %


@dataclass(frozen=True, slots=True)
class Share:
    """``count`` of ``of``, with an interval that holds the true share 19 times of 20.

    Wilson's score interval: unlike the standard error it does not shrink to nothing at none or all.
    """

    count: int
    of: int

    @property
    def value(self) -> float:
        return self.count / self.of if self.of else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """From and to, as shares."""
        if not self.of:
            return 0.0, 1.0
        weight = Z**2 / self.of
        middle = (self.value + weight / 2.0) / (1.0 + weight)
        spread = self.value * (1.0 - self.value) / self.of + weight / (4.0 * self.of)
        half = Z * math.sqrt(spread) / (1.0 + weight)
        return max(0.0, middle - half), min(1.0, middle + half)

    def said(self) -> str:
        """``12.5% (12 of 96; 7.3% to 20.6%)``."""
        low, high = self.interval
        return f"{self.value:.1%} ({self.count} of {self.of}; {low:.1%} to {high:.1%})"

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {"count": self.count, "of": self.of, "share": self.value, "low": low, "high": high}


@dataclass(frozen=True, slots=True)
class Study:
    """What many seeds came to. ``minutes`` are those of the rollouts that were rolled back, sorted.

    ``exposed`` is the mean over all seeds of the devices that served the candidate, with its standard
    error; ``in_stage`` counts rollbacks by stage, from 0.
    """

    scenario: str
    is_worse: bool
    devices: int
    seeds: tuple[int, ...]
    rolled_back: Share
    promoted: Share
    holding: Share
    minutes: tuple[float, ...]
    exposed: float
    exposed_error: float
    in_stage: tuple[tuple[int, int], ...]
    cpu_s: float

    @property
    def median_minutes(self) -> float | None:
        return statistics.median(self.minutes) if self.minutes else None

    @property
    def verdict(self) -> str:
        """What a rollback means in this scenario."""
        return "power" if self.is_worse else "false rollbacks"

    def rows(self) -> list[tuple[str, str]]:
        """The table for people."""
        what = "a rollback is right" if self.is_worse else "every rollback is false"
        soon = "–"
        if self.minutes:
            low, high = _quartiles(self.minutes)
            soon = f"{self.median_minutes:.1f} min ({low:.1f} to {high:.1f})"
        stages = ", ".join(f"{count} in stage {stage + 1}" for stage, count in self.in_stage)
        return [
            ("scenario", f"{self.scenario}: {what}"),
            ("rollouts", f"{self.rolled_back.of} of {self.devices} devices"),
            (self.verdict, self.rolled_back.said()),
            ("time to a rollback", f"median {soon}" if self.minutes else soon),
            ("rolled back in", stages or "–"),
            ("promoted", self.promoted.said()),
            ("left holding", self.holding.said()),
            ("devices exposed", f"{self.exposed:.1f} ± {self.exposed_error:.1f} on average"),
            ("time", f"{self.cpu_s:.1f} s of CPU"),
        ]

    def to_json(self) -> dict[str, Any]:
        """The same for machines."""
        shares = {
            name: getattr(self, name).to_json() for name in ("rolled_back", "promoted", "holding")
        }
        return {
            **asdict(self),
            **shares,
            "verdict": self.verdict,
            "median_minutes": self.median_minutes,
            "in_stage": {str(stage): count for stage, count in self.in_stage},
        }


def run_seeds(scenario: Scenario, seeds: Sequence[int], jobs: int) -> Iterator[VirtualOutcome]:
    """The scenario once for each seed, in their order, on ``jobs`` processes.

    Raises:
        ScenarioError: it is no virtual scenario; nothing has been started then.
    """
    check_virtual(scenario)
    worlds = [scenario.changed(seed=seed) for seed in seeds]
    if jobs <= 1 or len(worlds) <= 1:
        yield from map(_one, worlds)
        return
    with ProcessPoolExecutor(min(jobs, len(worlds)), get_context("spawn")) as pool:
        yield from pool.map(_one, worlds)


def _one(scenario: Scenario) -> VirtualOutcome:
    return asyncio.run(run_virtual(scenario))


def summed_up(scenario: Scenario, name: str, outcomes: Iterable[VirtualOutcome]) -> Study:
    """One study of several outcomes. Raises ValueError when there are none."""
    ended = list(outcomes)
    if not ended:
        raise ValueError("a study needs one outcome at least")
    hits = [one for one in ended if one.state == ROLLED_BACK]
    promoted = sum(one.state == PROMOTED for one in ended)
    exposed = [float(one.exposed) for one in ended]
    spread = statistics.stdev(exposed) if len(exposed) > 1 else 0.0
    return Study(
        scenario=name,
        is_worse=scenario.candidate.is_worse,
        devices=ended[0].devices,
        seeds=tuple(one.seed for one in ended),
        rolled_back=Share(len(hits), len(ended)),
        promoted=Share(promoted, len(ended)),
        holding=Share(len(ended) - len(hits) - promoted, len(ended)),
        minutes=tuple(sorted(one.after_s / 60.0 for one in hits)),
        exposed=statistics.fmean(exposed),
        exposed_error=spread / math.sqrt(len(exposed)),
        in_stage=tuple(sorted(Counter(one.stage for one in hits).items())),
        cpu_s=round(sum(one.cpu_s for one in ended), 2),
    )


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
