"""What is frozen when a stage begins, beyond the ring itself, and what is known of it so far. Pure.

Rules kept here: which metrics can hold a stage is decided before its first number is seen, from what
the devices were like before; what is stored has a version and reads back to the same bytes; a look is
taken once for each time that is due, and missed ones are merged.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from fleet.rollout.gate.frames import pack, unpack
from fleet.rollout.gate.mde import smallest_effect
from fleet.rollout.gate.metrics import Kind, metric_of
from fleet.rollout.gate.result import LookResult
from fleet.rollout.gate.ring import POOLED, Counts, FloatArray, IntArray, Ring
from fleet.rollout.gate.schedule import look_number
from fleet.rollout.sources import DRIFT
from fleet.rollout.spec import StageKind, Statistics

__all__ = [
    "ARM_ROLES",
    "MARGIN",
    "Evidence",
    "Expected",
    "FreshLook",
    "FrozenRing",
    "due_look",
    "expected_effects",
    "held_metrics",
    "next_look_s",
]

ARM_ROLES: Final[Mapping[StageKind, str]] = {StageKind.AB: "arm", StageKind.SHADOW: "shadow"}
"""Stages in which both bundles run on the same devices, and the role of the new one's windows."""
AGAIN_LEAST_S: Final = 60.0  # between two looks after the bake, while the stage waits for data
_AGAIN_MOST_S: Final = 600.0
_AGAIN_SHARE: Final = 0.1  # of the bake
_LOST_S: Final = 90.0  # of a bake: a device's minute begins and ends a little off
MARGIN: Final = 0.9  # of the tolerated change must be expected to be seen
_LEVEL_DEVICES: Final = 20  # of both arms, before a level can be expected to tell anything
_NO_FACTOR: Final = (DRIFT, "shadow_disagreement_rate")
"""What has no factor: drift is about zero when nothing changes, and without a shadow nothing disagrees."""


@dataclass(frozen=True)
class FrozenRing:
    """A ring, and what else was decided when it began.

    Attributes:
        kind: what the bundle does on the devices of the stage.
        statistics: as the operator asked.
        held: the metrics that the ring must be able to see before the stage goes on.
        expected: by metric, the smallest factor the stage was expected to see; None for unknown.
        labels, outputs: what each device answered before, by label: shape (devices, labels).
        budgets: by kind of outcome, the share of devices that may fail that way.
    """

    ring: Ring
    kind: StageKind
    statistics: Statistics
    held: tuple[str, ...]
    expected: Mapping[str, float | None]
    labels: tuple[str, ...]
    outputs: IntArray
    budgets: Mapping[str, float]

    @property
    def arm(self) -> str | None:
        """The role of the new bundle's windows where both run side by side; None where they do not."""
        return ARM_ROLES.get(self.kind)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of windows that are counted."""
        return ("",) if self.arm is None else ("", self.arm)

    @cached_property
    def place(self) -> Mapping[str, int]:
        """Where each device of the pool stands."""
        return {device_id: number for number, device_id in enumerate(self.ring.device_ids)}

    def to_bytes(self) -> bytes:
        """As stored."""
        values = {
            "kind": str(self.kind),
            "statistics": str(self.statistics),
            "held": list(self.held),
            "expected": dict(self.expected),
            "labels": list(self.labels),
            "budgets": dict(self.budgets),
        }
        ring = np.frombuffer(self.ring.to_bytes(), dtype=np.uint8)
        framed = pack("frozen ring", values, {"ring": ring, "outputs": self.outputs})
        return zlib.compress(framed, 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> "FrozenRing":
        """Raises ValueError: not a frozen ring of this version, or damaged."""
        try:
            framed = zlib.decompress(data)
        except zlib.error as error:
            raise ValueError(f"the stored frozen ring is damaged: {error}") from error
        values, arrays = unpack("frozen ring", framed)
        return cls(
            ring=Ring.from_bytes(arrays["ring"].tobytes()),
            kind=StageKind(values["kind"]),
            statistics=Statistics(values["statistics"]),
            held=tuple(values["held"]),
            expected=values["expected"],
            labels=tuple(values["labels"]),
            outputs=arrays["outputs"],
            budgets=values["budgets"],
        )


@dataclass(frozen=True, slots=True)
class FreshLook:
    """A look that was just taken, to be stored with the decision it leads to."""

    k: int
    at_s: float
    state: bytes
    counts: bytes
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a stage by comparison: its ring, and the newest look, if there was one.

    ``number`` counts the looks of the ring, repeated ones too. ``fresh`` is the newest look as long
    as it is not stored.
    """

    ring_id: int
    frozen: FrozenRing
    number: int = 0
    result: LookResult | None = None
    next_look_s: float | None = None
    fresh: FreshLook | None = None


def due_look(ring: Ring, last: tuple[int, float] | None, now_s: float) -> int:
    """The number k of the look that is due now; 0 when none is.

    Args:
        last: k and time of the newest look; looks between it and now were missed, and are merged.
            After the bake the last look is repeated now and then, for a stage that waits for data.
    """
    k = look_number(ring.looks_s, now_s - ring.started_s)
    if last is None or k > last[0]:
        return k
    if k == len(ring.looks_s) and now_s >= last[1] + _again_s(ring):
        return k
    return 0


def next_look_s(ring: Ring, last: tuple[int, float] | None) -> float:
    """When the next look is due."""
    done = 0 if last is None else last[0]
    if done < len(ring.looks_s) or last is None:
        return ring.started_s + ring.looks_s[min(done, len(ring.looks_s) - 1)]
    return last[1] + _again_s(ring)


def _again_s(ring: Ring) -> float:
    return min(max(AGAIN_LEAST_S, _AGAIN_SHARE * ring.bake_s), _AGAIN_MOST_S)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a ring can expect: the past of its pool, and how long that was for each device.

    ``paired``: both bundles run on each device, the new one with ``traffic`` of the requests.
    """

    past: Counts
    seconds: FloatArray
    paired: bool = False
    traffic: float = 1.0


def expected_effects(ring: Ring, given: Expected) -> dict[str, float | None]:
    """By rate metric of the ring, the smallest factor it can be expected to find; None for unknown.

    Each device is taken to have as many events in the bake as in as much of its past, so many of them
    bad as a binomial draw at its own rate gives (from the ring's own seed, so it is the same again):
    the smallest effect follows from how far such rates lie apart.
    """
    stream = np.random.default_rng(int.from_bytes(ring.seed, "big"))
    bake_s = max(0.0, ring.bake_s - _LOST_S)
    share = np.divide(
        bake_s * given.traffic,
        given.seconds,
        out=np.zeros(len(given.seconds)),
        where=given.seconds > 0,
    )
    alpha = ring.tests[POOLED] / max(1, len(ring.metrics))
    found: dict[str, float | None] = {}
    for name in ring.metrics:
        total = given.past.total.get(name)
        if metric_of(name).kind is not Kind.RATE or total is None:
            continue
        events = np.floor(total * share).astype(np.int64)
        has = events >= max(1, metric_of(name).min_events)
        p = np.minimum(ring.baseline[name].p, 1.0)
        bad = stream.binomial(events, p)
        control = has if given.paired else has & ~ring.cohort
        v = bad[control] / np.maximum(events[control], 1) / p[control]
        canaries = int(np.count_nonzero(has & ring.cohort))
        size = 2 * canaries if given.paired else int(np.count_nonzero(has))
        effect = smallest_effect(v, canaries, size, alpha)
        found[name] = effect if np.isfinite(effect) else None
    return found


def held_metrics(
    ring: Ring, statistics: Statistics, expected: Mapping[str, float | None]
) -> tuple[str, ...]:
    """The metrics that the ring must be able to see before the stage goes on.

    With ``on`` all that were asked for and can have a tolerance. With ``auto`` the rates whose
    tolerated change the stage was expected to find, and levels with a past on enough devices of both
    arms.
    """
    asked = [name for name in ring.metrics if name in ring.tolerances and name not in _NO_FACTOR]
    if statistics is Statistics.ON:
        return tuple(asked)
    return tuple(name for name in asked if _can_be_seen(ring, name, expected.get(name)))


def _can_be_seen(ring: Ring, name: str, expected: float | None) -> bool:
    if metric_of(name).kind is Kind.LEVEL:
        arms = (ring.canaries, ring.size - ring.canaries)
        few = min(arms) < _LEVEL_DEVICES and ring.canaries != ring.size
        return not few and ring.baseline[name].known >= 2 * _LEVEL_DEVICES
    return expected is not None and expected - 1 <= MARGIN * (ring.tolerances[name] - 1)
