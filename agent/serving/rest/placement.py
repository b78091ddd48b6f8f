"""Where a request runs: on the event loop, which is fastest for a small model, or in the pool, so
that a slow model does not hold up the others.

Rules kept here:

- Decided by measurement: the thread's time that requests of this size took for this version, from
  reading the JSON to writing the answer. What was never fast runs in the pool.
- A request no larger than one that was fast runs inline. A version that was slow inline too often
  goes to the pool until it is fast there: the time of some models hangs on values, not sizes.
- A swap starts the measurement anew. Where two versions answer the same requests (an A/B), both are measured, and a
  request runs inline only where both are fast: which of them answers is decided later.
"""

from dataclasses import dataclass

__all__ = ["Placement", "PlacementLimits"]


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
    slow: float = 0.0
    other: "_Measured | None" = None
    """Which version answered before it, until that is too long ago."""
    turns: int = 0
    """Answers in a row."""


class Placement:
    """Decides for one event loop. Not for threads: it is asked and told on the loop."""

    def __init__(self, limits: PlacementLimits | None = None) -> None:
        self._limits = limits or PlacementLimits()
        self._measured: dict[tuple[str, str], _Measured] = {}

    def inline(self, model: str, version: str, size_bytes: int) -> bool:
        """Whether a request of this size runs on the event loop."""
        measured = self._measured.get((model, version))
        if measured is None or not self._fast(measured, size_bytes):
            return False
        return measured.other is None or self._fast(measured.other, size_bytes)

    def _fast(self, measured: _Measured, size_bytes: int) -> bool:
        return size_bytes <= measured.fast_bytes and measured.slow <= self._limits.forgiven

    def record(
        self, key: tuple[str, str], servable: str, size_bytes: int, seconds: float, *, inline: bool
    ) -> None:
        """A request to ``key`` (model, version asked for) was answered by ``servable`` (digest)."""
        measured = self._measured.get(key)
        if measured is None or measured.servable != servable:
            self._measured.pop(key, None)
            while len(self._measured) >= self._limits.versions:
                del self._measured[next(iter(self._measured))]
            measured = self._measured[key] = _turned(measured, servable)
        if measured.other is not None:
            measured.turns += 1
            if measured.turns > self._limits.turns:
                measured.other = None
        if seconds <= self._limits.fast_s:
            measured.fast_bytes = max(measured.fast_bytes, size_bytes)
            measured.slow = max(0.0, measured.slow - self._limits.recovery)
        elif inline and seconds >= self._limits.slow_s:
            measured.slow += seconds / self._limits.slow_s


def _turned(measured: _Measured | None, servable: str) -> _Measured:
    """The measurement of a version that answers after another one, which is kept beside it."""
    other = None if measured is None else measured.other
    turned = other if other is not None and other.servable == servable else _Measured(servable)
    if measured is not None:
        measured.other = None
    turned.other, turned.turns = measured, 0
    return turned
