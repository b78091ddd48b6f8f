"""Who may say what to a device: what signed metadata means, decided without I/O.

The light face: values and decisions. What needs the TUF client is imported by name, because it is
heavier:
:mod:`agent.trust.refresh` (verify metadata), :mod:`agent.trust.reading` (directives and releases in
a verified state), :mod:`agent.trust.manifest` (a manifest against its release),
:mod:`agent.trust.pack` (the retained message).
"""

from agent.trust.cohort import in_cohort, slot_of, slots_of
from agent.trust.decide import decide, decide_in
from agent.trust.decision import CurrentModel, Decision, DeviceFacts, Reason, Tries, Verb
from agent.trust.directive import Directive
from agent.trust.emergency import Emergencies, Emergency
from agent.trust.errors import RefusedMetadataError
from agent.trust.loopback import require_loopback
from agent.trust.release import BundleRelease, bundle_path
from agent.trust.state import TrustState, TrustStore
from agent.trust.turns import (
    excluded,
    is_open,
    is_stopped,
    may_try,
    selects,
    share_now_bp,
    stratum_of,
)
from agent.trust.world import World

__all__ = [
    "BundleRelease",
    "CurrentModel",
    "Decision",
    "DeviceFacts",
    "Directive",
    "Emergencies",
    "Emergency",
    "Reason",
    "RefusedMetadataError",
    "Tries",
    "TrustState",
    "TrustStore",
    "Verb",
    "World",
    "bundle_path",
    "decide",
    "decide_in",
    "excluded",
    "in_cohort",
    "is_open",
    "is_stopped",
    "may_try",
    "require_loopback",
    "selects",
    "share_now_bp",
    "slot_of",
    "slots_of",
    "stratum_of",
]
