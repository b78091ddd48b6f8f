"""How a new version takes over from the old one, chosen from what both were measured to need.

Rules kept here:

- Beside (keeps availability): the new version is loaded while the old one answers, and requests never
  notice. Chosen whenever its measured peak fits into the memory that is available now, with a reserve.
- Unload first (keeps resources): the old version goes, the new one takes its memory, requests for this
  model wait a bounded time. Chosen when only that fits.
- Neither: the deployment is refused before anything is touched.
- What was not measured is estimated from the size of the bundle, never taken for nothing. Where the
  available memory is unknown, nothing can be compared and the old version is never taken away.

Values in, values out: asked twice, it answers the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

__all__ = ["MemoryLimits", "MemorySnapshot", "SwapMode", "SwapPlan", "plan_swap"]

MIB = 1 << 20


class SwapMode(StrEnum):
    """The ways to swap."""

    BESIDE = "beside"
    UNLOAD_FIRST = "unload_first"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """Bounds of a swap's memory."""

    reserve_bytes: int = 64 * MIB
    """Stays free for everything else on the device."""
    estimated_factor: float = 3.0
    """Of a bundle's size, when it was never measured: weights once as read, once as kept, and room to
    work."""
    estimated_floor_bytes: int = 16 * MIB
    hold_s: float = 30.0
    """How long requests for a model wait while its only version is being replaced."""


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """What is known when a swap is planned.

    ``available_bytes``: what the system can give now, beside all that runs (None: unknown).
    ``candidate_peak_bytes``: the most the candidate took in its trial (None: not measured), of
    ``candidate_size_bytes`` on disk. ``old_bytes``: what unloading the old version gives back, at
    most what was measured of it (None: there is none to unload, or it was not measured).
    ``old_loaded``: there is an old version in memory.
    """

    available_bytes: int | None
    candidate_peak_bytes: int | None
    candidate_size_bytes: int
    old_bytes: int | None = None
    old_loaded: bool = False


@dataclass(frozen=True, slots=True)
class SwapPlan:
    """The way chosen, and why in words and numbers."""

    mode: SwapMode
    needed_bytes: int
    available_bytes: int | None
    reserve_bytes: int
    reason: str

    def measures(self) -> dict[str, float]:
        """For the report of the deployment."""
        found = {
            "swap_beside": float(self.mode is SwapMode.BESIDE),
            "swap_needed_bytes": float(self.needed_bytes),
            "swap_reserve_bytes": float(self.reserve_bytes),
        }
        if self.available_bytes is not None:
            found["swap_available_bytes"] = float(self.available_bytes)
        return found

    def to_json(self) -> Mapping[str, Any]:
        """For the record that ``fleet-agent status`` shows."""
        return {
            "mode": self.mode.value,
            "needed_bytes": self.needed_bytes,
            "available_bytes": self.available_bytes,
            "reserve_bytes": self.reserve_bytes,
            "reason": self.reason,
        }


def plan_swap(memory: MemorySnapshot, limits: MemoryLimits) -> SwapPlan:
    """The way to bring the candidate in."""
    needed, basis = _needed(memory, limits)
    available, reserve = memory.available_bytes, limits.reserve_bytes

    def plan(mode: SwapMode, reason: str) -> SwapPlan:
        return SwapPlan(mode, needed, available, reserve, reason)

    if available is None:
        return plan(SwapMode.BESIDE, "the available memory is not known")
    wanted = f"{_mib(needed)} ({basis})"
    if needed + reserve <= available:
        return plan(
            SwapMode.BESIDE,
            f"{wanted} fit beside what runs: {_mib(available)} are available, "
            f"{_mib(reserve)} stay in reserve",
        )
    short = (
        f"{wanted} do not fit beside what runs: {_mib(available)} are available, "
        f"{_mib(reserve)} of them in reserve"
    )
    if not memory.old_loaded:
        return plan(SwapMode.REFUSE, f"{short}, and there is no old version to unload")
    if memory.old_bytes is None:
        return plan(
            SwapMode.UNLOAD_FIRST,
            f"{short}; the old version goes first, what it takes was not measured",
        )
    if needed + reserve <= available + memory.old_bytes:
        return plan(
            SwapMode.UNLOAD_FIRST,
            f"{short}; the old version goes first and gives back {_mib(memory.old_bytes)}",
        )
    return plan(
        SwapMode.REFUSE,
        f"{short}, and the {_mib(memory.old_bytes)} of the old version are not enough",
    )


def _needed(memory: MemorySnapshot, limits: MemoryLimits) -> tuple[int, str]:
    """Bytes the candidate takes at its peak, and where that is from."""
    if memory.candidate_peak_bytes is not None:
        return memory.candidate_peak_bytes, "measured in the trial"
    estimate = int(limits.estimated_factor * memory.candidate_size_bytes)
    return max(estimate, limits.estimated_floor_bytes), "estimated from the bundle's size"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:.1f} MiB"
