"""What happens in a window: how many requests, how many of them bad, by the device and the bundle.

Rules kept here: given the device and the time, requests are Poisson and bad ones binomial, so all that
makes a device's requests alike is in its character and its mood; the candidate acts on the windows of
the candidate alone, an incident on everybody's.
"""

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from simulator.virtual.characters import DAY_S, Moods, draw_characters, generator
from simulator.virtual.settings import Candidate, Incident, Population
from simulator.virtual.windows import RATES, Bools, Floats, Ints, Windows

_Factor = Floats | float

__all__ = ["History", "Setting", "Spans", "Traffic"]

LAG_S: Final = 0.3  # from the end of a window to the fleet manager
DRIFT_FREEDOM: Final = 9  # bins of an output histogram less one: its drift by chance


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything a world is made of. ``window_s`` and ``cohort_window_s`` are the two report paces."""

    population: Population = field(default_factory=Population)
    candidate: Candidate = field(default_factory=Candidate)
    incident: Incident = field(default_factory=Incident)
    window_s: float = 60.0
    cohort_window_s: float = 15.0


@dataclass(frozen=True, slots=True)
class History:
    """What each device did before the world began: bad and all events by metric, and its drift score."""

    bad: dict[str, Ints]
    total: dict[str, Ints]
    output_drift: Floats


@dataclass(frozen=True, slots=True)
class Spans:
    """Windows before anything is counted in them."""

    device: Ints
    start_s: Floats
    end_s: Floats
    candidate: Bools


class Traffic:
    """Counts what the devices of one world answer."""

    def __init__(self, setting: Setting, count: int, seed: int) -> None:
        self.setting = setting
        self.characters = draw_characters(setting.population, count, seed)
        self._moods = Moods(setting.population, count, seed)
        self._draw = generator(seed, "traffic")
        self._past = generator(seed, "past")

    def history(self, span_s: float = DAY_S) -> History:
        """What each device did in the ``span_s`` before the world began, with the bundle it had."""
        own = self.characters
        events = self._past.poisson(own.per_s * span_s)
        compared = self._past.binomial(events, self.setting.population.feedback_share)
        total = {"requests": events, "compared": compared}
        rates = {
            "error_rate": np.where(own.broken, 1.0, own.error),
            "over_latency_rate": own.slow,
            "feedback_error_rate": own.wrong,
        }
        bad, of = {}, {}
        for metric, rate in rates.items():
            of[metric] = total[RATES[metric][1]]
            usual = rate if metric == "feedback_error_rate" else rate * self._moods.past
            bad[metric] = self._past.binomial(of[metric], np.minimum(usual, 1.0))
        drift = own.drift + self._chance_drift(self._past, events)
        return History(bad, of, drift)

    def windows(self, spans: Spans) -> Windows:
        """What happened in each of these windows."""
        requests = self._draw.poisson(self._load(spans))
        moved, hit = self._moved(spans), self._in_incident(spans)
        mood = self._moods.factors(spans.device, np.maximum(spans.start_s, 0.0))
        compared, wrong = self._feedback(spans.device, requests, moved)
        return Windows(
            device=spans.device,
            start_s=spans.start_s,
            end_s=spans.end_s,
            arrived_s=spans.end_s + LAG_S,
            candidate=spans.candidate,
            requests=requests,
            failures=self._failures(spans.device, requests, moved, mood, hit),
            over_objective=self._slow(spans.device, requests, moved, mood, hit),
            compared=compared,
            wrong=wrong,
            output_drift=self._drift(spans.device, requests, moved),
        )

    def _load(self, spans: Spans) -> Floats:
        """Requests to expect in each window."""
        population, incident = self.setting.population, self.setting.incident
        load: Floats = self.characters.per_s[spans.device] * (spans.end_s - spans.start_s)
        if population.diurnal:
            middle_s = (spans.start_s + spans.end_s) / 2.0
            load *= 1.0 + population.diurnal * np.sin(2.0 * math.pi * middle_s / DAY_S)
        load *= 1.0 + (incident.load_factor - 1.0) * self._in_incident(spans)
        return load

    def _failures(
        self, device: Ints, requests: Ints, moved: Bools, mood: _Factor, hit: _Factor
    ) -> Ints:
        candidate, own = self.setting.candidate, self.characters
        rate = own.error[device] * mood * (1.0 + (self.setting.incident.error_factor - 1.0) * hit)
        rate = _changed(rate, moved, candidate.error_factor, candidate.error_floor)
        return self._draw.binomial(requests, np.where(own.broken[device], 1.0, rate))

    def _slow(
        self, device: Ints, requests: Ints, moved: Bools, mood: _Factor, hit: _Factor
    ) -> Ints:
        if not self.setting.population.slow_rate and not self.setting.candidate.slow_floor:
            return np.zeros(len(device), np.int64)
        candidate, incident = self.setting.candidate, self.setting.incident
        rate = self.characters.slow[device] * mood * (1.0 + (incident.slow_factor - 1.0) * hit)
        rate = _changed(rate, moved, candidate.slow_factor, candidate.slow_floor)
        return self._draw.binomial(requests, rate)

    def _feedback(self, device: Ints, requests: Ints, moved: Bools) -> tuple[Ints, Ints]:
        if not self.setting.population.feedback_share:
            return np.zeros(len(device), np.int64), np.zeros(len(device), np.int64)
        compared = self._draw.binomial(requests, self.setting.population.feedback_share)
        rate = _changed(
            self.characters.wrong[device], moved, self.setting.candidate.wrong_factor, 0.0
        )
        return compared, self._draw.binomial(compared, rate)

    def _drift(self, device: Ints, requests: Ints, moved: Bools) -> Floats:
        if not self.setting.population.output_drift:
            return np.full(len(device), np.nan)
        real = self.characters.drift[device] * np.where(
            moved, self.setting.candidate.drift_factor, 1.0
        )
        found: Floats = real + self._chance_drift(self._draw, requests)
        return found

    def _in_incident(self, spans: Spans) -> _Factor:
        """The share of each window that the incident covers."""
        incident = self.setting.incident
        if not incident.duration_s:
            return 0.0
        end_s = incident.start_s + incident.duration_s
        covered = np.minimum(spans.end_s, end_s) - np.maximum(spans.start_s, incident.start_s)
        share: Floats = np.maximum(covered, 0.0) / (spans.end_s - spans.start_s)
        return share

    def concerned(self) -> Bools:
        """The devices on which the candidate changes something: shape (devices,)."""
        only, own = self.setting.candidate.only_kind, self.characters
        of_kind = np.array([only in ("", name) for name in own.kind_names])
        concerned: Bools = of_kind[own.kind]
        return concerned

    def _moved(self, spans: Spans) -> Bools:
        """Which windows are of the candidate on a device on which it changes something."""
        if not self.setting.candidate.only_kind:
            return spans.candidate
        moved: Bools = spans.candidate & self.concerned()[spans.device]
        return moved

    @staticmethod
    def _chance_drift(draw: np.random.Generator, outputs: Ints) -> Floats:
        """The drift that a histogram of so many outputs has by chance alone, less its expectation.

        The population stability index of n outputs over k bins against a long baseline is about
        chi-squared with k - 1 degrees of freedom, over n. nan where there was no output.
        """
        noise = draw.chisquare(DRIFT_FREEDOM, len(outputs)) - DRIFT_FREEDOM
        found: Floats = np.where(outputs > 0, noise / np.maximum(outputs, 1), np.nan)
        return found


def _changed(rate: Floats, moved: Bools, factor: float, floor: float) -> Floats:
    """Rates with the candidate's effect where it has one, as probabilities."""
    if factor != 1.0 or floor:
        rate = np.where(moved, np.maximum(rate * factor, floor), rate)
    return np.minimum(rate, 1.0)
