"""One ring of a rollout: what is frozen when it starts, and what a look leaves for the next one.

Rules kept here: whatever decides is fixed before the first number of the ring is seen (who is in the
pool, who in the cohort, the baselines, the looks, the seed); devices are in the order of their ids
everywhere; what is stored has a version and is read back to the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fleet.rollout.gate.blocks import POOLED, Block, blocks_of, tests_of
from fleet.rollout.gate.frames import Arrays, pack, unpack

__all__ = [
    "ALPHA",
    "POOLED",
    "Baseline",
    "BoolArray",
    "Counts",
    "FloatArray",
    "IntArray",
    "Ring",
    "Spending",
    "State",
    "fresh",
]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ALPHA: Final = 0.01  # chance that a rollout which changes nothing is rolled back


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

    def to_bytes(self) -> bytes:
        """The counts a look was taken of."""
        arrays: Arrays = {f"bad {name}": array for name, array in self.bad.items()}
        arrays |= {f"total {name}": array for name, array in self.total.items()}
        arrays |= {f"level {name}": array for name, array in self.level.items()}
        if self.reported is not None:
            arrays["reported"] = self.reported
        return pack("counts", {}, arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Counts":
        """Raises ValueError: not counts of this version, or damaged."""
        _, arrays = unpack("counts", data)

        def of(kind: str) -> dict[str, npt.NDArray[Any]]:
            prefix = f"{kind} "
            return {
                name.removeprefix(prefix): array
                for name, array in arrays.items()
                if name.startswith(prefix)
            }

        return cls(of("bad"), of("total"), of("level"), arrays.get("reported"))


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
    def blocks(self) -> tuple[Block, ...]:
        """The pool in parts, see ``blocks_of``."""
        return blocks_of(self.strata, self.stratum_names, self.cohort)

    @cached_property
    def tests(self) -> Mapping[str, float]:
        """The tests of this ring and what each may spend, see ``tests_of``."""
        return tests_of(self.blocks, self.alpha_ring)

    def to_bytes(self) -> bytes:
        """A ring as it was frozen."""
        values = {
            "rollout_id": self.rollout_id,
            "stage": self.stage,
            "rings": self.rings,
            "started_s": self.started_s,
            "bake_s": self.bake_s,
            "device_ids": list(self.device_ids),
            "stratum_names": list(self.stratum_names),
            "percent_bp": self.percent_bp,
            "drawn_from": self.drawn_from,
            "metrics": list(self.metrics),
            "tolerances": dict(self.tolerances),
            "baseline": {name: [b.mu, b.kappa, b.known] for name, b in self.baseline.items()},
            "looks_s": list(self.looks_s),
            "alpha": self.alpha,
            "virtual": self.virtual,
            "seed": self.seed.hex(),
        }
        arrays: Arrays = {"strata": self.strata, "cohort": self.cohort}
        arrays |= {f"p {name}": baseline.p for name, baseline in self.baseline.items()}
        return pack("ring", values, arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Ring":
        """Raises ValueError: not a ring of this version, or damaged."""
        values, arrays = unpack("ring", data)
        texts = ("device_ids", "stratum_names", "metrics", "looks_s")
        values |= {name: tuple(values[name]) for name in texts}
        values["seed"] = bytes.fromhex(values["seed"])
        values["baseline"] = {
            name: Baseline(arrays[f"p {name}"], mu, kappa, known)
            for name, (mu, kappa, known) in values["baseline"].items()
        }
        return cls(**values, strata=arrays["strata"], cohort=arrays["cohort"])


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

    def to_bytes(self) -> bytes:
        """A state, compact: a bit for each virtual cohort."""
        names = sorted(self.tests)
        values = {
            "looks": self.looks,
            "stopped": list(self.stopped),
            "tests": [
                [name, self.tests[name].removed, self.tests[name].since, self.tests[name].before]
                for name in names
            ],
        }
        arrays = {
            str(number): np.frombuffer(self.tests[name].living, dtype=np.uint8)
            for number, name in enumerate(names)
        }
        return pack("state", values, arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> "State":
        """Raises ValueError: not a state of this version, or damaged."""
        values, arrays = unpack("state", data)
        tests = {
            name: Spending(removed, arrays[str(number)].tobytes(), since, before)
            for number, (name, removed, since, before) in enumerate(values["tests"])
        }
        return cls(values["looks"], tests, tuple(values["stopped"]))
