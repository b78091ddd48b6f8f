"""What one served version counts between two drains.

Rules kept here:

- ``requests`` are those that reached the model: refused inputs are counted apart, so that a
  caller's mistakes neither raise nor dilute a model's error rate.
- ``over_objective`` and the latency histogram count answered requests; a failure has no latency.
- What was answered is counted by name (see ``agent.runtime.observer``), a bounded number of names; the rest is
  ``OTHER``.
- Of a shadow: answers compared with the active version's, and copies that were not made.
- A drain takes everything and starts anew, atomically: no request is counted twice or lost.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from agent.runtime.histogram import HistogramData, LatencyHistogram

__all__ = ["Counts", "Seen", "VersionCounters"]

MAX_ERROR_KINDS: Final = 16
MAX_OUTPUTS: Final = 32
"""Names of outputs in one window, ``OTHER`` among them."""
OTHER: Final = "other"


class Seen(NamedTuple):
    """What one answer says, for counting: by name, and of how many rows the confidence was looked at and low."""

    outputs: Mapping[str, int]
    confidences: int = 0
    low: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """One window's numbers."""

    requests: int = 0
    failures: int = 0
    over_objective: int = 0
    input_violations: int = 0
    output_violations: int = 0
    non_finite: int = 0
    error_kinds: Mapping[str, int] = field(default_factory=dict)
    latency: HistogramData | None = None
    shadow_compared: int = 0
    shadow_disagreed: int = 0
    shadow_dropped: int = 0
    confidence_count: int = 0
    low_confidence: int = 0
    output_counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        """Whether anything was counted."""
        return bool(
            self.requests or self.input_violations or self.shadow_dropped or self.error_kinds
        )


class VersionCounters:
    """Counters of one version in one role; safe for threads. ``objective_s``: an answer that takes
    longer is over it."""

    __slots__ = (
        "_compared",
        "_confidences",
        "_disagreed",
        "_dropped",
        "_failures",
        "_input_violations",
        "_kinds",
        "_latency",
        "_lock",
        "_low",
        "_non_finite",
        "_output_violations",
        "_outputs",
        "_over",
        "_requests",
        "objective_s",
        "role",
    )  # fmt: skip

    def __init__(self, objective_s: float, role: str = "") -> None:
        self.objective_s = objective_s
        self.role = role
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._requests = self._failures = self._over = 0
        self._input_violations = self._output_violations = self._non_finite = 0
        self._compared = self._disagreed = self._dropped = 0
        self._confidences = self._low = 0
        self._kinds: dict[str, int] = {}
        self._outputs: dict[str, int] = {}
        self._latency = LatencyHistogram()

    def answered(
        self,
        seconds: float,
        seen: Seen | None = None,
        *,
        violations: bool = False,
        non_finite: bool = False,
    ) -> None:
        """A request was answered after ``seconds``, with outputs that broke the contract or were
        not finite. ``seen``: what they say."""
        with self._lock:
            self._requests += 1
            self._latency.record(seconds)
            if seconds > self.objective_s:
                self._over += 1
            if violations:
                self._output_violations += 1
            if non_finite:
                self._non_finite += 1
            if seen is not None:
                outputs, confidences, low = seen
                self._confidences += confidences
                self._low += low
                for name, count in outputs.items():
                    known = self._outputs.get(name)
                    if known is None:
                        name, known = self._admitted(name)  # noqa: PLW2901
                    self._outputs[name] = known + count

    def _admitted(self, name: str) -> tuple[str, int]:
        """Under which name an output that is not known yet is counted, and what that has."""
        if len(self._outputs) - (OTHER in self._outputs) >= MAX_OUTPUTS - 1:
            name = OTHER
        return name, self._outputs.get(name, 0)

    def failed(self, kind: str) -> None:
        """The model failed on inputs that keep the contract."""
        with self._lock:
            self._requests += 1
            self._failures += 1
            self._kind(kind)

    def noted(self, kind: str) -> None:
        """Something went wrong that is no failure of the version."""
        with self._lock:
            self._kind(kind)

    def _kind(self, kind: str) -> None:
        known = kind if kind in self._kinds or len(self._kinds) < MAX_ERROR_KINDS else OTHER
        self._kinds[known] = self._kinds.get(known, 0) + 1

    def compared(self, *, agreed: bool) -> None:
        """This shadow's answer was compared with the active version's."""
        with self._lock:
            self._compared += 1
            self._disagreed += not agreed

    def dropped(self) -> None:
        """A request that this shadow should have got was not copied, or its copy was not run."""
        with self._lock:
            self._dropped += 1

    def refused(self) -> None:
        """A request broke the contract and never reached the model."""
        with self._lock:
            self._input_violations += 1

    def drain(self) -> Counts:
        """Everything since the last drain."""
        with self._lock:
            counts = Counts(
                requests=self._requests,
                failures=self._failures,
                over_objective=self._over,
                input_violations=self._input_violations,
                output_violations=self._output_violations,
                non_finite=self._non_finite,
                error_kinds=dict(self._kinds),
                latency=self._latency.data(),
                shadow_compared=self._compared,
                shadow_disagreed=self._disagreed,
                shadow_dropped=self._dropped,
                confidence_count=self._confidences,
                low_confidence=self._low,
                output_counts=dict(self._outputs),
            )
            self._reset()
        return counts
