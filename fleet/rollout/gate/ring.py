"""One ring of a rollout: what is frozen when it starts, and what a look leaves for the next one.

Rules kept here: whatever decides is fixed before the first number of the ring is seen (who is in the
pool, who in the cohort, the baselines, the looks, the seed); devices are in the order of their ids
everywhere; what is stored has a version and is read back to the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "ALPHA",
    "MIN_CANARIES",
    "POOLED",
    "REST",
    "Baseline",
    "Block",
    "BoolArray",
    "Counts",
    "FloatArray",
    "IntArray",
    "Ring",
    "Spending",
    "State",
    "blocks_of",
    "fresh",
    "tests_of",
]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ALPHA: Final = 0.01  # chance that a rollout which changes nothing is rolled back
POOLED: Final = ""  # the name of the test over all strata, beside the names of strata
REST: Final = "*"  # the block of all strata that are too small for a test of their own
MIN_CANARIES: Final = 8  # in a stratum that gets its own test
MAX_STRATA: Final = 8  # with a test of their own; the largest


@dataclass(frozen=True, slots=True)
class Baseline:
    """What each device was like before the rollout, in pool order.

    Of a rate: ``p`` is the device's own rate, shrunk to the pool's and kept above zero (see
    baseline.py), ``mu`` the pool's rate and ``kappa`` the weight of the pool in events. Of a level:
    ``p`` is the device's own mean, or the pool's where it has none, and ``mu`` the pool's.
    ``known``: how many devices had a history; 0 means that the metric was never reported.
    """

    p: FloatArray
    mu: float
    kappa: float
    known: int


@dataclass(frozen=True, slots=True)
class Counts:
    """What each device has reported since the ring started, in pool order, by metric.

    ``bad`` and ``total`` (int64) of rates, ``level`` (float64, nan where nothing was reported) of
    levels. ``reported`` is true where any window at all has arrived; None takes the devices with
    events or levels. A metric that is missing altogether is an outage of that metric.
    """

    bad: Mapping[str, IntArray] = field(default_factory=dict)
    total: Mapping[str, IntArray] = field(default_factory=dict)
    level: Mapping[str, FloatArray] = field(default_factory=dict)
    reported: BoolArray | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the pool inside which virtual cohorts are drawn.

    ``name`` is the stratum's, or ``REST`` for the strata too small for a test. ``members`` are pool
    indices, ``canaries`` of them are in the cohort.
    """

    name: str
    members: IntArray
    canaries: int

    @property
    def tested(self) -> bool:
        return self.name != REST and MIN_CANARIES <= self.canaries < len(self.members)


def blocks_of(
    strata: npt.NDArray[np.int16], names: tuple[str, ...], cohort: BoolArray
) -> tuple[Block, ...]:
    """The strata that can be expected to hold ``MIN_CANARIES`` canary devices, and the rest as one.

    Given how many canary devices each block has, a hash cohort is a uniformly random choice inside
    each. What makes a block depends on the sizes of strata and of the cohort alone, never on who is
    in it, so this stays exact. At most ``MAX_STRATA`` blocks, the largest.
    """
    share = np.count_nonzero(cohort) / max(1, len(cohort))
    sizes = np.bincount(strata, minlength=len(names))
    order = sorted(range(len(names)), key=lambda index: (-int(sizes[index]), names[index]))
    large = [index for index in order if sizes[index] * share >= MIN_CANARIES][:MAX_STRATA]
    blocks = [(names[index], np.flatnonzero(strata == index)) for index in sorted(large)]
    rest = np.flatnonzero(~np.isin(strata, large))
    if len(rest):
        blocks.append((REST, rest))
    return tuple(
        Block(name, members, int(np.count_nonzero(cohort[members]))) for name, members in blocks
    )


def tests_of(blocks: Sequence[Block], alpha: float) -> Mapping[str, float]:
    """What each test of a ring may spend: half for all devices, half shared by the strata.

    A fleet of one block has no strata to tell apart: the test over all devices spends everything.
    """
    tested = [block.name for block in blocks if block.tested] if len(blocks) > 1 else []
    if not tested:
        return {POOLED: alpha}
    return {POOLED: alpha / 2, **{name: alpha / (2 * len(tested)) for name in tested}}


@dataclass(frozen=True)
class Ring:
    """A ring as it was frozen at its start. Made by ``open_ring``.

    Attributes:
        device_ids: the pool, sorted.
        strata: index into ``stratum_names`` per device, int16.
        cohort: which devices get the bundle; the others are control.
        percent_bp: share of the matching devices that the cohort was asked to have, for the
            sample-ratio guard; ``drawn_from`` devices matched before control was sub-sampled.
        tolerances: by metric, the change that must be ruled out to promote (1.25: 25 % worse).
        looks_s: seconds after ``started_s`` at which the arms are compared.
        alpha: of the whole rollout; a ring spends ``alpha_ring``.
        virtual: number of virtual cohorts (B).
    """

    rollout_id: str
    stage: int
    rings: int
    started_s: float
    bake_s: float
    device_ids: tuple[str, ...]
    strata: npt.NDArray[np.int16]
    stratum_names: tuple[str, ...]
    cohort: BoolArray
    percent_bp: int
    drawn_from: int
    metrics: tuple[str, ...]
    tolerances: Mapping[str, float]
    baseline: Mapping[str, Baseline]
    looks_s: tuple[float, ...]
    alpha: float
    virtual: int
    seed: bytes

    @property
    def size(self) -> int:
        """Devices of the pool (N)."""
        return len(self.device_ids)

    @cached_property
    def canaries(self) -> int:
        """Devices of the cohort (n)."""
        return int(np.count_nonzero(self.cohort))

    @property
    def alpha_ring(self) -> float:
        """What this ring may spend: the rings share alpha equally."""
        return self.alpha / self.rings

    @cached_property
    def blocks(self) -> "tuple[Block, ...]":
        """The pool in parts, see ``blocks_of``."""
        return blocks_of(self.strata, self.stratum_names, self.cohort)

    @cached_property
    def tests(self) -> Mapping[str, float]:
        """The tests of this ring and what each may spend, see ``tests_of``."""
        return tests_of(self.blocks, self.alpha_ring)


@dataclass(frozen=True, slots=True)
class Spending:
    """One test's budget so far.

    ``removed`` counts virtual cohorts dropped since look ``since``; ``living`` has a bit for each
    virtual cohort (``np.packbits``); ``before`` counts those dropped before the test was begun anew
    at look ``since``, because a stratum was stopped.
    """

    removed: int
    living: bytes
    since: int = 0
    before: int = 0

    def alive(self, virtual: int) -> BoolArray:
        """Which virtual cohorts are still in the test: shape (virtual,)."""
        bits = np.unpackbits(np.frombuffer(self.living, dtype=np.uint8), count=virtual)
        return bits.astype(np.bool_)


def fresh(virtual: int, since: int = 0, before: int = 0) -> Spending:
    """A test in which every virtual cohort lives."""
    return Spending(0, np.packbits(np.ones(virtual, dtype=np.bool_)).tobytes(), since, before)


@dataclass(frozen=True, slots=True)
class State:
    """What a look leaves, stored after each one. ``State()`` is the state before the first.

    ``looks`` is the number of the last look (looks that were missed are in it); ``tests`` has one
    entry for each stratum that is tested, and ``POOLED``, and is filled by the first look.
    """

    looks: int = 0
    tests: Mapping[str, Spending] = field(default_factory=dict)
    stopped: tuple[str, ...] = ()  # strata whose own test has failed

    def living(self, test: str, virtual: int) -> "BoolArray":
        """Which virtual cohorts are still in a test: shape (virtual,)."""
        spending = self.tests.get(test)
        if spending is None:
            return np.ones(virtual, dtype=np.bool_)
        bits = np.unpackbits(np.frombuffer(spending.living, dtype=np.uint8), count=virtual)
        return bits.astype(np.bool_)
