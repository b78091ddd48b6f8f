"""When a ring is looked at. Pure.

Rules kept here: looks are dense at first, because a bad bundle should be found soon, and thin out;
their number is fixed when the ring starts, since it divides what may be spent on each.
"""

from typing import Final

__all__ = ["FIRST_S", "look_minutes", "look_number"]

FIRST_S: Final = 150.0
"""No look before: the ring starts, a device's minute begins up to 60 s later, lasts 60 s, arrives."""

_MINUTES: Final = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60)
_GROWTH: Final = 1.25
_MAX_LOOKS: Final = 64  # a bake of 30 days has 46


def look_minutes(bake_s: float) -> tuple[float, ...]:
    """Seconds after the start of a ring at which it is looked at; the last is the end of the bake.

    The minutes 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, then each 1.25 times the one
    before, all later by ``FIRST_S`` less a minute, and cut off where the bake ends. A bake shorter
    than 4 minutes is looked at once, at its end.
    """
    shift_s = FIRST_S - 60.0 * _MINUTES[0]
    looks: list[float] = []
    minute = 0.0
    for number in range(_MAX_LOOKS):
        minute = float(_MINUTES[number]) if number < len(_MINUTES) else minute * _GROWTH
        at_s = shift_s + 60.0 * minute
        if at_s >= bake_s:
            break
        looks.append(at_s)
    return (*looks, max(bake_s, 0.0))


def look_number(looks_s: tuple[float, ...], elapsed_s: float) -> int:
    """The number of the last look that is due after ``elapsed_s``; 0 before the first."""
    return sum(at_s <= elapsed_s for at_s in looks_s)
