"""What one served version counts between two drains.

Rules kept here:

- ``requests`` are those that reached the model: refused inputs are counted apart, so that a
  caller's mistakes neither raise nor dilute a model's error rate.
- ``over_objective`` and the latency histogram count answered requests; a failure has no latency.
- ``unroutable`` are requests that the version answered as the active one because nothing in them says which arm they
  belong to.
- A drain takes everything and starts anew, atomically: no request is counted twice or lost.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.runtime.histogram import HistogramData, LatencyHistogram

__all__ = ["Counts", "VersionCounters"]

MAX_ERROR_KINDS: Final = 16


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
    unroutable: int = 0

    @property
    def any(self) -> bool:
        """Whether anything was counted."""
        return bool(self.requests or self.input_violations or self.unroutable)


class VersionCounters:
    """Counters of one version in one role; safe for threads. ``objective_s``: an answer that takes
    longer is over it."""

    __slots__ = (
        "_failures",
        "_input_violations",
        "_kinds",
        "_latency",
        "_lock",
        "_non_finite",
        "_output_violations",
        "_over",
        "_requests",
        "_unroutable",
        "objective_s",
        "role",
    )  # fmt: skip

    def __init__(self, objective_s: float, role: str = "") -> None:
        self.objective_s = objective_s
        self.role = role
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._requests = self._failures = self._over = self._unroutable = 0
        self._input_violations = self._output_violations = self._non_finite = 0
        self._kinds: dict[str, int] = {}
        self._latency = LatencyHistogram()

    def answered(
        self, seconds: float, *, violations: bool = False, non_finite: bool = False
    ) -> None:
        """A request was answered after ``seconds``, with outputs that broke the contract or were
        not finite."""
        with self._lock:
            self._requests += 1
            self._latency.record(seconds)
            if seconds > self.objective_s:
                self._over += 1
            if violations:
                self._output_violations += 1
            if non_finite:
                self._non_finite += 1

    def failed(self, kind: str) -> None:
        """The model failed on inputs that keep the contract."""
        with self._lock:
            self._requests += 1
            self._failures += 1
            known = kind if kind in self._kinds or len(self._kinds) < MAX_ERROR_KINDS else "other"
            self._kinds[known] = self._kinds.get(known, 0) + 1

    def refused(self) -> None:
        """A request broke the contract and never reached the model."""
        with self._lock:
            self._input_violations += 1

    def unroutable(self) -> None:
        """A request is answered by this version because nothing says which arm it belongs to."""
        with self._lock:
            self._unroutable += 1

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
                unroutable=self._unroutable,
            )
            self._reset()
        return counts
