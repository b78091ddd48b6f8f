"""Rings of devices with drawn rates, for tests and benchmarks of the gate: arrays, no fleet manager.

Devices differ (beta-distributed rates), requests of one device are alike, and both are drawn from a
generator that is passed in.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from fleet.rollout.gate.exposure import Exposure, Windows
from fleet.rollout.gate.look import look
from fleet.rollout.gate.opening import Pool, RingPlan, open_ring
from fleet.rollout.gate.result import LookResult
from fleet.rollout.gate.ring import BoolArray, Counts, FloatArray, IntArray, Ring, State
from fleet.rollout.gate.verdict import Verdict

__all__ = [
    "Population",
    "Setting",
    "cohort_factor",
    "counts_of",
    "exposed",
    "play",
    "population",
    "raw_counts",
    "swapped",
    "windows_of",
]

LAG_S = 90.0  # from an event to where it can be counted: the look at 150 s sees one minute


@dataclass(frozen=True)
class Setting:
    """One ring: ``canaries`` of ``size`` devices, ``per_minute`` requests a device."""

    size: int = 200
    canaries: int = 20
    mean: float = 0.02
    icc: float = 0.02
    per_minute: float = 30.0
    history_minutes: float = 24 * 60.0
    bake_s: float = 3600.0
    alpha: float = 0.01
    rings: int = 1
    metrics: tuple[str, ...] = ("error_rate",)
    strata: tuple[str, ...] = ("edge/cpu",)
    tolerances: dict[str, float] = field(default_factory=dict)
    rollout_id: str = "r1"


@dataclass(frozen=True)
class Population:
    """A ring and the true rate of each of its devices, metric by metric: shape (metrics, devices)."""

    setting: Setting
    ring: Ring
    rates: FloatArray


def population(rng: np.random.Generator, setting: Setting) -> Population:
    """Draw rates, a history of them, and a cohort."""
    weight = 1 / setting.icc - 1
    shape = (len(setting.metrics), setting.size)
    rates = rng.beta(setting.mean * weight, (1 - setting.mean) * weight, shape)
    cohort = np.zeros(setting.size, dtype=np.bool_)
    cohort[rng.choice(setting.size, setting.canaries, replace=False)] = True
    total = rng.poisson(setting.per_minute * setting.history_minutes, setting.size)
    history = counts_of(setting.metrics, rng.binomial(total, rates), total)
    plan = RingPlan(
        rollout_id=setting.rollout_id,
        stage=0,
        rings=setting.rings,
        started_s=0.0,
        bake_s=setting.bake_s,
        percent_bp=max(1, round(10_000 * setting.canaries / setting.size)),
        metrics=setting.metrics,
        tolerances=setting.tolerances,
        alpha=setting.alpha,
    )
    ids = [f"d{number:05d}" for number in range(setting.size)]
    strata = [setting.strata[number % len(setting.strata)] for number in range(setting.size)]
    ring = open_ring(plan, Pool(ids, strata, cohort.tolist()), history)
    return Population(setting, ring, rates)


def counts_of(metrics: tuple[str, ...], bad: IntArray, total: IntArray) -> Counts:
    """``bad`` has a row for each metric, ``total`` is the same for all."""
    return Counts(
        bad={name: bad[row].astype(np.int64) for row, name in enumerate(metrics)},
        total={name: total.astype(np.int64) for name in metrics},
    )


def play(
    rng: np.random.Generator, drawn: Population, factor: FloatArray | float = 1.0
) -> Iterator[tuple[LookResult, State, Counts]]:
    """All looks of a ring, until an alarm over all devices. ``factor`` multiplies rates, by device."""
    ring = drawn.ring
    rates = np.clip(drawn.rates * factor, 0.0, 1.0)
    state = State()
    bad = np.zeros(rates.shape, dtype=np.int64)
    total = np.zeros(ring.size, dtype=np.int64)
    before_s = 0.0
    for number, at_s in enumerate(ring.looks_s, 1):
        seen_s = max(0.0, at_s - LAG_S)
        new = rng.poisson(drawn.setting.per_minute * (seen_s - before_s) / 60, ring.size)
        before_s = seen_s
        total = total + new
        bad = bad + rng.binomial(new, rates)
        counts = counts_of(ring.metrics, bad, total)
        result, state = look(ring, state, counts, number)
        yield result, state, counts
        if result.verdict is Verdict.FAIL:
            return


def cohort_factor(ring: Ring, factor: float) -> FloatArray:
    """``factor`` on every device of the cohort."""
    return np.where(ring.cohort, factor, 1.0)


def swapped(ring: Ring) -> Ring:
    """The same ring with the arms the other way round."""
    return replace(ring, cohort=~ring.cohort, percent_bp=10_000 - ring.percent_bp)


def windows_of(
    rng: np.random.Generator,
    drawn: Population,
    fast: BoolArray,
    until_s: float,
    aligned: bool = False,
) -> Windows:
    """Every window that has arrived ``until_s`` after the start: 15 s long where ``fast``, else 60 s.

    The phase of a device is uniform, or, with ``aligned``, fast ones began with the ring, within two
    seconds, as devices do that are told to; a window arrives when it ends. In the order of arrival.
    """
    size = drawn.ring.size
    length_s = np.where(fast, 15.0, 60.0)
    phase_s = rng.random(size) * np.where(fast & aligned, 2.0, length_s)
    most = int(until_s // 15.0) + 2
    start_s = phase_s[:, None] + (np.arange(most) - 1) * length_s[:, None]
    end_s = start_s + length_s[:, None]
    device, turn = np.nonzero(end_s <= until_s)
    order = np.argsort(end_s[device, turn], kind="stable")
    device, turn = device[order], turn[order]
    total = rng.poisson(drawn.setting.per_minute * length_s[device] / 60)
    bad = rng.binomial(total, drawn.rates[:, device])
    counts = counts_of(drawn.ring.metrics, bad, total)
    return Windows(device.astype(np.int64), start_s[device, turn], end_s[device, turn], counts)


def raw_counts(drawn: Population, windows: Windows) -> Counts:
    """Plain sums of whatever has arrived since the start: what the gate does not do."""
    inside = windows.start_s >= 0
    size = drawn.ring.size
    return Counts(
        bad={
            name: np.bincount(windows.device[inside], values[inside], size).astype(np.int64)
            for name, values in windows.counts.bad.items()
        },
        total={
            name: np.bincount(windows.device[inside], values[inside], size).astype(np.int64)
            for name, values in windows.counts.total.items()
        },
    )


def exposed(exposure: Exposure, windows: Windows) -> Counts:
    """The same at equal exposure."""
    return exposure.add(windows).counts()
