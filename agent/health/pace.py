"""How often a device reports: fast while it is being compared, slowly otherwise, so that cost follows the cohort.

Rules kept here:
- Fast: a deployment under way (what is held beside is one), a stage this device is in, an equal number of devices
  that are compared with it, and ``settle_s`` after a deployment ended.
- Going from slow to fast ends the present window early, so that no fast window holds slow telemetry.
"""

from dataclasses import dataclass

from agent.trust import (
    DeviceFacts,
    Directive,
    excluded,
    is_stopped,
    selects,
    slot_of,
)
from agent.trust.cohort import SLOTS

__all__ = ["Pace", "PaceLimits", "in_comparison"]


@dataclass(frozen=True, slots=True)
class PaceLimits:
    """``probation_s``: between two looks at a bundle on probation."""

    window_s: float = 60.0
    cohort_window_s: float = 15.0
    probation_s: float = 1.0
    settle_s: float = 3600.0


def in_comparison(directive: Directive, facts: DeviceFacts) -> bool:
    """Whether the rollout's stage holds this device, or it is one of as many that do without the bundle.

    The comparison devices are the next places in the same order: nobody can choose them either. The stage holds
    who answers with the bundle (at the end of a ramp) and who holds it beside; a device that is left out, or whose
    stratum was stopped, is no part of it.
    """
    beside_bp = directive.beside_bp if directive.mode != "canary" else 0
    stage_bp = max(directive.percent_bp, beside_bp)
    if directive.kind != "deploy" or not 0 < stage_bp < SLOTS:
        return False
    if directive.device_class != facts.device_class or not selects(directive.selector, facts):
        return False
    if excluded(directive.exclude, facts) is not None or is_stopped(directive, facts):
        return False
    return slot_of(directive.sha256, facts.device_id) < 2 * stage_bp


class Pace:
    """When the next window is due. All times monotonic seconds."""

    __slots__ = ("_ended_s", "_fast", "_limits", "_since_s")

    def __init__(self, limits: PaceLimits, now_s: float) -> None:
        self._limits = limits
        self._since_s = now_s
        self._ended_s: float | None = None
        self._fast = False

    def ended(self, now_s: float) -> None:
        """A deployment has just ended."""
        self._ended_s = now_s

    def set(self, *, busy: bool, now_s: float) -> None:
        settling = self._ended_s is not None and now_s - self._ended_s < self._limits.settle_s
        self._fast = busy or settling

    @property
    def window_s(self) -> float:
        """Length of the present window."""
        limits = self._limits
        return min(limits.cohort_window_s, limits.window_s) if self._fast else limits.window_s

    def until_window_s(self, now_s: float) -> float:
        """Seconds until the present window ends; 0 or less when it has."""
        return self._since_s + self.window_s - now_s

    def took_window(self, now_s: float) -> None:
        self._since_s = now_s
