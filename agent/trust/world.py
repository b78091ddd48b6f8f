"""What every judgement about one device needs, and what one directive comes to."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from agent.trust.cohort import SLOTS, slot_of
from agent.trust.decision import DeviceFacts, Reason, Verb
from agent.trust.directive import Directive
from agent.trust.emergency import NO_EMERGENCY, Emergencies
from agent.trust.release import BundleRelease
from agent.trust.turns import is_open, share_now_bp

__all__ = ["Finding", "World", "refuse"]


@dataclass(frozen=True, slots=True)
class World:
    """All that is verified and known, besides where the device stands with its models.

    Attributes:
        releases: the verified releases by path.
        facts: the device.
        floor: lowest acceptable release by model, ``TrustState.floors_for(facts.device_class)``.
        now_s: trusted time, ``TrustState.trusted_now_s(clock)``.
        emergency: what the emergency role says.
        expires_s: from when on nothing may be begun or swapped in by this metadata.
    """

    releases: Mapping[str, BundleRelease]
    facts: DeviceFacts
    floor: Mapping[str, int]
    now_s: float
    emergency: Emergencies = NO_EMERGENCY
    expires_s: float = math.inf

    @property
    def is_fresh(self) -> bool:
        """Whether the metadata still holds."""
        return self.now_s < self.expires_s

    def is_open(self, directive: Directive) -> bool:
        """Whether it is within the directive's open hours here."""
        return is_open(directive.open_hours, self.now_s, self.facts.utc_offset_minutes)

    def slot(self, directive: Directive) -> int:
        """This device's place in the order in which the bundle reaches the fleet."""
        return slot_of(directive.sha256, self.facts.device_id)

    def limit_bp(self, directive: Directive) -> int:
        """The share that the release allows by now; all of the fleet while it is not known, or lifted."""
        release = self.releases.get(directive.bundle)
        if release is None or self.emergency.lifts(directive.sha256, self.now_s):
            return SLOTS
        return release.limit_bp(self.now_s)

    def answers(self, directive: Directive) -> bool:
        """Whether this device is in the share that answers with the bundle, as the release allows by now."""
        share_bp = min(share_now_bp(directive, self.now_s), self.limit_bp(directive))
        return self.slot(directive) < share_bp

    def released(self, manifest_sha256: str | None) -> BundleRelease | None:
        """The release of a bundle by its manifest; None when none is signed (any more)."""
        return next(
            (entry for entry in self.releases.values() if entry.sha256 == manifest_sha256), None
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """What one directive says to this device. ``settled`` ends the reading."""

    verb: Verb
    reason: Reason
    text: str
    settled: bool = False
    release: BundleRelease | None = None


def refuse(reason: Reason, text: str) -> Finding:
    """The directive is meant for this device and cannot be obeyed."""
    return Finding(Verb.REFUSE, reason, text)
