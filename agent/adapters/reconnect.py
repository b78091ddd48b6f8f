"""How long a link waits before it tries again: longer each time, with jitter, lest a fleet returns at once."""

import random
from dataclasses import dataclass

__all__ = ["Reconnect", "ReconnectLimits"]


@dataclass(frozen=True, slots=True)
class ReconnectLimits:
    """``stable_s``: a connection that lasted this long starts the waits anew."""

    first_s: float = 0.5
    most_s: float = 60.0
    stable_s: float = 30.0


class Reconnect:
    """The waits of one link."""

    __slots__ = ("_failures", "_limits", "_random")

    def __init__(self, limits: ReconnectLimits, randomness: random.Random | None = None) -> None:
        self._limits = limits
        self._random = randomness or random.Random()  # noqa: S311 (spreads load, guards nothing)
        self._failures = 0

    def lasted(self, seconds: float) -> None:
        """A connection was up for ``seconds``."""
        if seconds >= self._limits.stable_s:
            self._failures = 0

    def next_wait_s(self) -> float:
        """The wait before the next attempt, seconds: between half and all of the doubled bound."""
        bound = min(self._limits.first_s * 2.0 ** min(self._failures, 30), self._limits.most_s)
        self._failures += 1
        return bound * (0.5 + 0.5 * self._random.random())
