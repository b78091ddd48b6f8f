"""How fast a release may spread, as people write and read it: ``0s:1%,4h:10%,1d:100%``.

Rules kept here: times begin with the signature and grow, and so do the shares; what a device would not read is refused
before it is signed.
"""

import itertools
from collections.abc import Sequence
from typing import Final

from fleet.errors import RequestError
from fleet.rollout.reading import parse_duration, parse_percent

__all__ = ["SpeedLimits", "limits_words", "parse_limits"]

SpeedLimits = tuple[tuple[int, int], ...]
"""Pairs of seconds since the signature and basis points; empty for no limit."""

_MOST: Final = 32
_UNITS: Final = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))


def parse_limits(text: str) -> SpeedLimits:
    """``AFTER:SHARE`` with commas between; an empty text is no limit.

    Raises:
        RequestError: it says something else; says which part.
    """
    if not text.strip():
        return ()
    found = []
    for part in text.split(","):
        after, colon, share = part.partition(":")
        if not colon:
            raise RequestError(
                f"--limits: {part.strip()[:60]!r} is no AFTER:SHARE: write it like 0s:1%,4h:10%,1d:100%"
            )
        after_s = parse_duration(after, "--limits: the time after the signature")
        found.append((round(after_s), parse_percent(share, "--limits: the share")))
    if len(found) > _MOST:
        raise RequestError(f"--limits: {len(found)} steps; devices read at most {_MOST}")
    for before, step in itertools.pairwise(found):
        if step[0] <= before[0] or step[1] <= before[1]:
            raise RequestError(
                f"--limits: {limits_words((step,))} comes after {limits_words((before,))}: times and shares must grow"
            )
    return tuple(found)


def limits_words(limits: Sequence[Sequence[int]]) -> str:
    """The same text again; empty for no limit."""
    return ",".join(f"{_duration(after_s)}:{share_bp / 100:g}%" for after_s, share_bp in limits)


def _duration(seconds: int) -> str:
    unit, size = next((unit for unit in _UNITS if seconds and seconds % unit[1] == 0), ("s", 1))
    return f"{seconds // size}{unit}"
