"""When a process that is at rest gives memory back. Pure: what was seen goes in, whether it is time comes out.

Rules kept here:
- Only at rest: nothing under way and nothing new for ``rest_s``. Whoever works is never disturbed.
- Once after each work. Requests alone bring the next time no sooner than ``again_s`` after the last, so that one
  request a minute does not give memory back and take it again all day; what changes what is held (a start, a
  deployment, a load) leaves far more behind, and brings it as soon as there is rest.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace

__all__ = ["Calm", "CalmLimits", "Work", "gave_back", "is_due", "seen"]


@dataclass(frozen=True, slots=True)
class CalmLimits:
    """``rest_s``: without anything new; ``again_s``: between two times; ``look_s``: between two looks."""

    rest_s: float = 20.0
    again_s: float = 300.0
    look_s: float = 5.0

    @classmethod
    def after(cls, rest_s: float) -> "CalmLimits":
        """With another ``rest_s``, looked at often enough for that."""
        return cls(rest_s=rest_s, look_s=min(cls().look_s, rest_s / 4))


@dataclass(frozen=True, slots=True)
class Work:
    """What a process has done and does. ``requests``: begun so far; ``held``: what it has loaded or serves, equal as
    long as nothing changes; ``under_way``: something runs now."""

    requests: int
    held: Hashable
    under_way: bool


@dataclass(frozen=True, slots=True)
class Calm:
    """What is remembered from look to look; ``not_before_s``: an earlier time was not long ago. Monotonic seconds."""

    work: Work
    since_s: float
    owed: bool = True
    not_before_s: float = float("-inf")


def seen(calm: Calm, work: Work, now_s: float) -> Calm:
    """The same after a look."""
    if work == calm.work and not work.under_way:
        return calm
    not_before_s = calm.not_before_s if work.held == calm.work.held else float("-inf")
    return Calm(work, now_s, True, not_before_s)


def is_due(calm: Calm, now_s: float, limits: CalmLimits) -> bool:
    """Whether it is time to give memory back."""
    rested = now_s - calm.since_s >= limits.rest_s
    return calm.owed and rested and not calm.work.under_way and now_s >= calm.not_before_s


def gave_back(calm: Calm, now_s: float, limits: CalmLimits) -> Calm:
    """The same after memory was given back."""
    return replace(calm, owed=False, not_before_s=now_s + limits.again_s)
