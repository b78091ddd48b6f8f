"""What the emergency role says: bundles that nobody may have, and speed limits that hold no longer.

Rules kept here:

* It is signed by offline keys of its own, and speaks of bundles by the digest of their manifest, so that whoever
  holds the online keys can neither aim a word of it at another bundle nor make one up.
* A block holds for as long as the newest emergency metadata carries it, expired or not: an attacker who waits does
  not get a blocked bundle back. A lifted limit holds only until the metadata expires.
* Of an entry with keys that this agent does not know the blocks count and the lifts do not.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from agent.trust.errors import MalformedError

__all__ = [
    "EMERGENCY_PATH",
    "EMERGENCY_PROBE",
    "EMERGENCY_ROLE",
    "NO_EMERGENCY",
    "Emergencies",
    "Emergency",
    "combine",
]

EMERGENCY_ROLE: Final = "emergency"
"""The delegated role that speaks for :data:`EMERGENCY_PATH`; a fleet folder of an older version has none."""
EMERGENCY_PATH: Final = re.compile(r"rollouts/([a-z0-9-]{1,64})/emergency")
EMERGENCY_PROBE: Final = "rollouts/-/emergency"
"""Asking for this path makes the TUF client load the role."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_LARGEST: Final = 2**53
_ENTRIES_MAX: Final = 1024
_REASON_MAX: Final = 256
_KEYS: Final = frozenset({"id", "blocked", "lifted", "signed_at_s"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Emergency:
    """One signed line of the emergency role.

    Attributes:
        id: a name for people, ``fleet`` or the id of a rollout.
        blocked: manifest digests that no device may install or keep, and why.
        lifted: manifest digests whose speed limits hold no longer.
        signed_at_s: when it was signed, in seconds since the epoch.
    """

    id: str
    blocked: Mapping[str, str] = field(default_factory=dict)
    lifted: tuple[str, ...] = ()
    signed_at_s: int = 0

    @property
    def target_path(self) -> str:
        """Where it stands in the emergency role."""
        return f"rollouts/{self.id}/emergency"

    def to_json(self) -> dict[str, Any]:
        """As JSON values; :meth:`from_json` gives the same back."""
        return {
            "id": self.id,
            "blocked": dict(sorted(self.blocked.items())),
            "lifted": sorted(self.lifted),
            "signed_at_s": self.signed_at_s,
        }

    @property
    def body(self) -> bytes:
        """The bytes whose length and digest the target names: compact JSON with sorted keys."""
        return body_of(self.to_json())

    @classmethod
    def from_json(cls, value: object) -> "Emergency":
        """Parse one entry.

        Raises:
            MalformedError: a key is missing or of the wrong kind; the message names it.
        """
        if not isinstance(value, Mapping) or not set(value) >= _KEYS:
            raise MalformedError(
                "an emergency entry must be a JSON object with id, blocked, lifted"
            )
        known = set(value) == _KEYS
        name, signed_at_s = value["id"], value["signed_at_s"]
        if not isinstance(name, str) or not EMERGENCY_PATH.fullmatch(f"rollouts/{name}/emergency"):
            raise MalformedError(f"emergency entry {str(name)[:64]!r} has no usable id")
        if not isinstance(signed_at_s, int) or not 0 <= signed_at_s <= _LARGEST:
            raise MalformedError(f"emergency entry {name!r}: signed_at_s is no time")
        lifted = _digests(name, "lifted", value["lifted"], list)
        blocked = _digests(name, "blocked", value["blocked"], dict)
        reasons = {digest: str(value["blocked"][digest])[:_REASON_MAX] for digest in blocked}
        return cls(
            id=name, blocked=reasons, lifted=lifted if known else (), signed_at_s=signed_at_s
        )


def body_of(custom: Mapping[str, Any]) -> bytes:
    """What an entry's target is the length and the digest of."""
    return json.dumps(custom, sort_keys=True, separators=(",", ":")).encode()


def check_target(path: str, length: int, sha256: str | None, custom: object) -> Emergency:
    """The entry at ``path`` of the role, as signed.

    Raises:
        MalformedError: it is none, or its path, length or digest say another thing than its body.
    """
    entry = Emergency.from_json(custom)
    assert isinstance(custom, Mapping)
    body = body_of(custom)
    signed = (entry.target_path, len(body), hashlib.sha256(body).hexdigest())
    if (path, length, sha256) != signed:
        raise MalformedError(
            f"emergency entry {path[:100]!r} says one thing in its target and another in its body"
        )
    return entry


def _digests(name: str, key: str, value: object, kind: type) -> tuple[str, ...]:
    if not isinstance(value, kind) or len(value) > _ENTRIES_MAX:  # type: ignore[arg-type]
        raise MalformedError(f"emergency entry {name!r}: {key} is no list of at most 1024 digests")
    found = tuple(value)  # type: ignore[arg-type, var-annotated]
    for digest in found:
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise MalformedError(f"emergency entry {name!r}: {key} holds what is no digest")
    return found


@dataclass(frozen=True, slots=True)
class Emergencies:
    """Everything the role says, over all its entries.

    Attributes:
        blocked: why, by manifest digest.
        lifted: manifest digests whose speed limits do not hold until ``expires_s``.
        expires_s: when the role's metadata expires, in seconds since the epoch.
    """

    blocked: Mapping[str, str] = field(default_factory=dict)
    lifted: frozenset[str] = frozenset()
    expires_s: float = 0.0

    def lifts(self, manifest_sha256: str, now_s: float) -> bool:
        """Whether the speed limits of this bundle do not hold at ``now_s``."""
        return manifest_sha256 in self.lifted and now_s < self.expires_s


NO_EMERGENCY: Final = Emergencies()


def combine(entries: Iterable[Emergency], expires_s: float) -> Emergencies:
    """All entries as one; what any of them blocks is blocked."""
    blocked: dict[str, str] = {}
    lifted: set[str] = set()
    for entry in sorted(entries, key=lambda entry: entry.id):
        blocked |= entry.blocked
        lifted |= set(entry.lifted)
    return Emergencies(blocked, frozenset(lifted), expires_s)
