"""Why metadata, a pack or a manifest is not acceptable: a class for each reason, with its code.

The code goes into logs and counters; the message says what happened, to which file, and what to do.
A refusal may carry the progress made before it (``progress``): newer roots and timestamps that were
verified stay verified, and forgetting them would let an attacker who withholds one file roll back
the others. Save it, then go on as before.
"""

from typing import TYPE_CHECKING, ClassVar

from agent.errors import TrustError

if TYPE_CHECKING:
    from agent.trust.state import TrustState

__all__ = [
    "ExpiredError",
    "LengthOrHashError",
    "MalformedError",
    "ManifestMismatchError",
    "MissingMetadataError",
    "OversizeError",
    "PackMalformedError",
    "PackTooLargeError",
    "RefusedMetadataError",
    "RollbackError",
    "SignatureError",
    "TimeFloorError",
]


class RefusedMetadataError(TrustError):
    """Metadata that a device does not accept."""

    code: ClassVar[str] = "refused"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.progress: TrustState | None = None


class MalformedError(RefusedMetadataError):
    """Not the form that was agreed on."""

    code = "malformed"


class PackMalformedError(MalformedError):
    """The pack is not gzip over the agreed message, or holds names it must not."""

    code = "pack_malformed"


class PackTooLargeError(RefusedMetadataError):
    """The pack is larger than allowed, before or after unpacking."""

    code = "pack_too_large"


class ExpiredError(RefusedMetadataError):
    """Signed, but out of date: a freeze, or a fleet manager that has stopped signing."""

    code = "expired"


class TimeFloorError(ExpiredError):
    """Valid by the device's clock, expired by a time that signed metadata has shown to be past."""

    code = "below_time_floor"


class RollbackError(RefusedMetadataError):
    """Older than what this device has already accepted."""

    code = "rollback"


class SignatureError(RefusedMetadataError):
    """Not signed by enough of the keys that may sign it."""

    code = "bad_signature"


class LengthOrHashError(RefusedMetadataError):
    """Not the bytes that snapshot or timestamp name: altered, or taken from another state."""

    code = "length_or_hash"


class OversizeError(RefusedMetadataError):
    """Longer than the file may be."""

    code = "too_large"


class MissingMetadataError(RefusedMetadataError):
    """A file that the signed metadata requires is not offered."""

    code = "missing"


class ManifestMismatchError(RefusedMetadataError):
    """The manifest is not the one that the release role has signed."""

    code = "manifest_mismatch"
