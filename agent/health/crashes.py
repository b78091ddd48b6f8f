"""Whether an installed bundle keeps taking the model server (or the device) down. Pure: values in, a reason out.

Rules kept here:
- A crash counts against the bundle that was running or being loaded when it happened; a crash that several bundles
  may have caused counts against each by its share.
- A bundle with a predecessor goes before its third crash; one without is kept longer, because nothing would answer
  in its place, but not for ever: it takes the other models of the device down with it.
- The clock may jump over a power cut: a crash that seems to lie in the future is a recent one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

__all__ = ["MAX_KEPT", "Crash", "CrashLimits", "crash_loop", "with_crash"]

MAX_KEPT: Final = 16
"""Crashes of one model that are remembered, the newest."""
_ENOUGH: Final = 1e-6
"""Shares such as thirds add up to a little less than one."""


@dataclass(frozen=True, slots=True)
class CrashLimits:
    """``window_s``: how long a crash counts; ``max_crashes``: within it, at the last of which the bundle goes;
    ``max_crashes_alone``: the same for a bundle without a predecessor to go back to."""

    window_s: float = 600.0
    max_crashes: int = 2
    max_crashes_alone: int = 5


@dataclass(frozen=True, slots=True)
class Crash:
    """The model server, or the device, went down with this bundle under suspicion.

    ``at_s`` on the wall clock; ``share``: 1 divided by the number of bundles that may have caused it.
    """

    manifest_sha256: str
    at_s: float
    how: str
    share: float = 1.0


def crash_loop(
    crashes: Iterable[Crash],
    manifest_sha256: str,
    now_s: float,
    limits: CrashLimits,
    *,
    alone: bool = False,
) -> str | None:
    """Why this bundle must not be run again, or None while it may be. ``alone``: it has no predecessor."""
    counted = [
        crash
        for crash in crashes
        if crash.manifest_sha256 == manifest_sha256 and now_s - crash.at_s <= limits.window_s
    ]
    limit = limits.max_crashes_alone if alone else limits.max_crashes
    if sum(crash.share for crash in counted) + _ENOUGH < limit:
        return None
    return f"{len(counted)} crashes within {limits.window_s:g} s; the last: {counted[-1].how}"


def with_crash(crashes: tuple[Crash, ...], crash: Crash) -> tuple[Crash, ...]:
    """The crashes to remember after one more."""
    return (*crashes, crash)[-MAX_KEPT:]
