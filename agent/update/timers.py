"""When what failed may be tried again. Times on the monotonic clock."""

from collections.abc import Callable

from agent.delivery import backoff_s
from agent.ports import Clock

__all__ = ["Timers"]

Key = tuple[str, str]
"""(what, model)."""


class Timers:
    """Due times by key. A key without a time is due. Failures in a row back off."""

    def __init__(
        self, clock: Clock, base_s: float, max_s: float, uniform: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._base_s = base_s
        self._max_s = max_s
        self._uniform = uniform
        self._at: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}

    def due(self, key: Key) -> bool:
        return key not in self._at

    def failed(self, key: Key) -> None:
        """Not before a pause that grows with each failure in a row."""
        self._failures[key] = self._failures.get(key, 0) + 1
        pause_s = backoff_s(self._failures[key], self._base_s, self._max_s, self._uniform())
        self._at[key] = self._clock.monotonic_s() + pause_s

    def set(self, key: Key, delay_s: float) -> None:
        self._at[key] = self._clock.monotonic_s() + max(delay_s, 0.0)

    def release(self, key: Key) -> None:
        """Due at once; the failures so far are remembered."""
        self._at.pop(key, None)

    def clear(self, key: Key) -> None:
        """It worked, or does not matter any more."""
        self._at.pop(key, None)
        self._failures.pop(key, None)

    def next_delay_s(self) -> float | None:
        """Seconds until the first key becomes due; None when no key waits."""
        if not self._at:
            return None
        return max(0.0, min(self._at.values()) - self._clock.monotonic_s())

    def expire(self) -> None:
        """Make due what has waited long enough."""
        now_s = self._clock.monotonic_s()
        for key in [key for key, at in self._at.items() if at <= now_s]:
            del self._at[key]
