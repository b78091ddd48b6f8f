"""Where a request runs: on the event loop, which is fastest for a small model, or in a pool, so that
a slow model does not hold up the others. For both front ends that have an event loop; each measures for itself.

Rules kept here:

- Decided by measurement: the thread's time that requests of this size took for this version, from
  reading the request to writing the answer. What was never fast runs in the pool.
- A request no larger than one that was fast runs inline. A version that was slow inline too often
  goes to the pool until it is fast there: the time of some models hangs on values, not sizes.
- Where one client asks alone, one question after the other, nobody is held up: then everything that is not slow runs
  inline. That this is so is seen from a row of such questions (``Company``), so two clients are never taken for one.
- A swap starts the measurement anew. Where two versions answer the same requests (an A/B), both are measured, and a
  request runs inline only where both are fast: which of them answers is decided later.
- The thread's own time is what counts: a busy machine makes no model slow. But it costs two system calls, which is a
  part of what a small model takes. So a run on the event loop is measured by the clock, and exactly only while in
  doubt: some runs long after one that seemed slow.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Company", "Placement", "PlacementLimits"]


@dataclass(frozen=True, slots=True)
class PlacementLimits:
    """Bounds of what may run on the event loop."""

    fast_s: float = 0.0003
    """What takes no longer is worth no thread: handing over costs about a tenth of that, and more
    under load."""
    slow_s: float = 0.005
    """What took longer inline held up everybody else."""
    forgiven: float = 3.0
    """So many times ``slow_s``, because some requests are slower than others; above that the version
    goes to the pool. One request that held up the loop for long is enough."""
    recovery: float = 0.01
    """What each fast answer takes off that sum: one slow in a hundred is no reason."""
    alone_row: int = 16
    """Questions in a row by one client, each after the answer to the one before."""
    doubted_runs: int = 64
    """Measured exactly after one that seemed slow."""
    turns: int = 256
    """Answers in a row after which only the version that gave them is thought to answer."""
    versions: int = 128
    """Measured at once; beyond it the oldest are measured anew."""


@dataclass(slots=True)
class _Measured:
    servable: str
    """Which loaded version this was measured on."""
    fast_bytes: int = -1
    """The largest request that was fast."""
    brief_bytes: int = -1
    """The largest request that was not slow."""
    slow: float = 0.0
    other: "_Measured | None" = None
    """Which version answered before it, until that is too long ago."""
    turns: int = 0
    """Answers in a row."""


class Company:
    """Whether one client asks alone. Not for threads."""

    __slots__ = ("_client", "_needed", "_row")

    def __init__(self, limits: PlacementLimits | None = None) -> None:
        self._needed = (limits or PlacementLimits()).alone_row
        self._client = 0
        self._row = 0

    def alone(self, client: int, others: int) -> bool:
        """Note a question of ``client`` (any number that is its own) while ``others`` are under way; whether it has
        been alone for a while."""
        if others or client != self._client:
            self._client, self._row = client, 0
            return False
        self._row += 1
        return self._row >= self._needed


class Placement:
    """Decides for one event loop. Not for threads: it is asked and told on the loop."""

    def __init__(self, limits: PlacementLimits | None = None) -> None:
        self.limits = limits or PlacementLimits()
        self._measured: dict[tuple[str, str], _Measured] = {}
        self._doubts: dict[tuple[str, str], int] = {}
        """Runs of a version that are still to be measured exactly."""

    def inline(self, model: str, version: str, size_bytes: int, *, alone: bool = False) -> bool:
        """Whether a request of this size runs on the event loop. ``alone``: its client asks alone."""
        measured = self._measured.get((model, version))
        if measured is None or not self._fast(measured, size_bytes, alone):
            return False
        return measured.other is None or self._fast(measured.other, size_bytes, alone)

    def clock(self, key: tuple[str, str]) -> Callable[[], float]:
        """What an inline run of this version is measured by: see the module's last rule."""
        return time.thread_time if key in self._doubts else time.perf_counter

    def record_inline(
        self, key: tuple[str, str], servable: str, size_bytes: int, seconds: float
    ) -> None:
        """As ``record``, of a run on the event loop, measured by ``clock``."""
        doubts = self._doubts.pop(key, 0)
        if doubts > 1:
            self._doubts[key] = doubts - 1
        elif not doubts and seconds >= self.limits.slow_s:
            if len(self._doubts) < self.limits.versions:
                self._doubts[key] = self.limits.doubted_runs
            return
        self.record(key, servable, size_bytes, seconds, inline=True)

    def _fast(self, measured: _Measured, size_bytes: int, alone: bool) -> bool:
        bound_bytes = measured.brief_bytes if alone else measured.fast_bytes
        return size_bytes <= bound_bytes and measured.slow <= self.limits.forgiven

    def record(
        self, key: tuple[str, str], servable: str, size_bytes: int, seconds: float, *, inline: bool
    ) -> None:
        """A request to ``key`` (model, version asked for) was answered by ``servable`` (digest)."""
        measured = self._measured.get(key)
        if measured is None or measured.servable != servable:
            self._measured.pop(key, None)
            while len(self._measured) >= self.limits.versions:
                del self._measured[next(iter(self._measured))]
            measured = self._measured[key] = _turned(measured, servable)
        if measured.other is not None:
            measured.turns += 1
            if measured.turns > self.limits.turns:
                measured.other = None
        if seconds < self.limits.slow_s:
            measured.brief_bytes = max(measured.brief_bytes, size_bytes)
        if seconds <= self.limits.fast_s:
            measured.fast_bytes = max(measured.fast_bytes, size_bytes)
            measured.slow = max(0.0, measured.slow - self.limits.recovery)
        elif inline and seconds >= self.limits.slow_s:
            measured.slow += seconds / self.limits.slow_s


def _turned(measured: _Measured | None, servable: str) -> _Measured:
    """The measurement of a version that answers after another one, which is kept beside it."""
    other = None if measured is None else measured.other
    turned = other if other is not None and other.servable == servable else _Measured(servable)
    if measured is not None:
        measured.other = None
    turned.other, turned.turns = measured, 0
    return turned
