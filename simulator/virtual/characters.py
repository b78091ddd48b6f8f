"""What makes one virtual device differ from another, and from itself an hour ago.

Rules kept here: a population and a seed give every device the same character, whatever bundle it
gets and whatever happens to it; nothing is drawn for what the population does not have.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from simulator.virtual.settings import Population
from simulator.virtual.windows import Bools, Floats, Ints

__all__ = ["DAY_S", "EPOCH_S", "Characters", "Moods", "beta_rates", "draw_characters", "generator"]

DAY_S: Final = 86_400.0
EPOCH_S: Final = 300.0  # a mood is constant so long


def generator(seed: int, what: str) -> np.random.Generator:
    """The source of one kind of chance: what is drawn from it moves no other kind."""
    return np.random.default_rng([seed, *what.encode()])


def beta_rates(source: np.random.Generator, mean: float, rho: float, count: int) -> Floats:
    """``count`` rates with this mean and intra-class correlation, by the Beta distribution.

    With a = mean (1/rho - 1) and b = (1 - mean)(1/rho - 1) two events of one device correlate with
    1/(a + b + 1) = rho (the beta-binomial model).
    """
    if mean <= 0.0 or mean >= 1.0 or rho <= 0.0:
        return np.full(count, mean)
    weight = 1.0 / rho - 1.0
    return source.beta(mean * weight, (1.0 - mean) * weight, count)


@dataclass(frozen=True, slots=True)
class Characters:
    """One row a device: requests a second, its own rates, its drift score and its kind."""

    per_s: Floats
    error: Floats
    slow: Floats
    wrong: Floats
    drift: Floats
    broken: Bools
    kind: npt.NDArray[np.int16]
    kind_names: tuple[str, ...]


def draw_characters(population: Population, count: int, seed: int) -> Characters:
    """The characters of ``count`` devices."""
    source = generator(seed, "characters")
    names = tuple(population.kinds)
    shares = np.array([population.kinds[name] for name in names])
    per_s = np.full(count, population.requests_per_min / 60.0)
    if population.requests_spread:
        per_s *= np.exp(source.normal(0.0, population.requests_spread, count))
    drift = np.full(count, population.output_drift)
    if population.output_drift:
        drift *= np.exp(source.normal(0.0, population.output_drift_spread, count))
    return Characters(
        per_s=per_s,
        error=beta_rates(source, population.error_rate, population.error_rho, count),
        slow=beta_rates(source, population.slow_rate, population.slow_rho, count),
        wrong=beta_rates(source, population.wrong_rate, population.wrong_rho, count),
        drift=drift,
        broken=source.random(count) < population.broken_rate,
        kind=source.choice(len(names), count, p=shares / shares.sum()).astype(np.int16),
        kind_names=names,
    )


class Moods:
    """By what a device's rates are multiplied over time: exp of a stationary Ornstein-Uhlenbeck process.

    Its mean is 1, its logarithm has standard deviation ``wander`` and is forgotten with time
    constant ``wander_s``. A day of it lies behind when the world begins.
    """

    def __init__(self, population: Population, count: int, seed: int) -> None:
        self._sigma = population.wander
        self._keep = math.exp(-EPOCH_S / population.wander_s)
        self._source = generator(seed, "moods")
        self._log = self._source.normal(0.0, self._sigma, count) if self._sigma else np.zeros(count)
        self._factors: list[Floats] = []
        self.past = np.ones(count)
        if self._sigma:
            days = [self._step() for _ in range(round(DAY_S / EPOCH_S))]
            self.past = np.mean(days, axis=0)

    def factors(self, device: Ints, at_s: Floats) -> Floats | float:
        """By what the rates of these devices are multiplied at these times (from 0 on)."""
        if not self._sigma or not len(device):
            return 1.0
        epoch = (at_s / EPOCH_S).astype(np.int64)
        while len(self._factors) <= epoch.max():
            self._factors.append(self._step())
        first = int(epoch.min())
        table = np.stack(self._factors[first : int(epoch.max()) + 1])
        found: Floats = table[epoch - first, device]
        return found

    def _step(self) -> Floats:
        fresh = self._sigma * math.sqrt(1.0 - self._keep**2)
        self._log = self._keep * self._log + self._source.normal(0.0, fresh, len(self._log))
        found: Floats = np.exp(self._log - self._sigma**2 / 2.0)
        return found
