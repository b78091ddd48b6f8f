"""Whether new bundles need an attestation of their checks, whose is believed, and whether it is there. Pure.

Rules kept here:

* The rule stands in the targets role, which only its keys can change: whoever holds the fleet manager, or a release
  key, can neither lower it nor add a key. The holder of a release key finds it in the signing request, signed.
* What cannot be read is never a pass; where attestations are given, each of them has to hold, asked for or not.
* Only bundles that are new are asked: what is published stays published.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from securesystemslib.signer import Key
from tuf.api.metadata import Targets

from agent.runtime.verdict import clean_text
from agent.trust import BundleRelease
from fleet.claims.attestation import Attestation, Result, attestation_digest, verify_attestation
from fleet.claims.errors import ClaimError
from fleet.errors import RefusedError
from fleet.repository.keys import key_name

__all__ = [
    "CLAIMS_FIELD",
    "Attestable",
    "ClaimsRule",
    "attested_by",
    "claims_rule",
    "policy_words",
    "require_attested",
]

CLAIMS_FIELD: Final = "x-muster-claims"
"""Field of the targets role."""
MAX_KEYS: Final = 16
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class ClaimsRule:
    """``keys``: whose attestations are believed. ``required``: a new bundle needs one at least."""

    keys: tuple[Key, ...] = ()
    required: bool = False

    def to_json(self) -> dict[str, Any]:
        """The value of the field."""
        keys = {key.keyid: key.to_dict() for key in self.keys}
        return {"keys": keys, "required": self.required}

    def key(self, keyid: str) -> str:
        """What people call a key of this rule."""
        return next((key_name(key) for key in self.keys if key.keyid == keyid), keyid[:12])


@dataclass(frozen=True, slots=True)
class Attestable:
    """A bundle that is to be released: its manifest's digest, and the digests of the attestations that are named."""

    path: str
    sha256: str
    attestations: tuple[str, ...]

    @classmethod
    def of(cls, release: BundleRelease) -> "Attestable":
        """The bundle of a signed line."""
        return cls(release.path, release.sha256, release.attestations)


def claims_rule(targets: Targets) -> ClaimsRule:
    """The rule that a targets role states; one that asks for nothing and believes nobody where it states none.

    Raises:
        RefusedError: it cannot be understood, or asks for what nobody could give.
    """
    value = targets.unrecognized_fields.get(CLAIMS_FIELD)
    if value is None:
        return ClaimsRule()
    try:
        if set(value) != {"keys", "required"} or not isinstance(value["required"], bool):
            raise ValueError("its keys are not 'keys' and 'required'")
        if not isinstance(value["keys"], dict) or len(value["keys"]) > MAX_KEYS:
            raise ValueError(f"it has no table of at most {MAX_KEYS} keys")
        keys = tuple(Key.from_dict(keyid, dict(key)) for keyid, key in value["keys"].items())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # Whatever the library trips over is a rule that nobody may take for "nothing is asked".
        raise RefusedError(
            f"the targets role states a rule about attestations that cannot be understood "
            f"({clean_text(str(error), 120)}): have the targets keys sign it anew, `fleet key claims`"
        ) from error
    if value["required"] and not keys:
        raise RefusedError(
            "the targets role asks for attestations and trusts nobody's: no bundle could be published. Name a key "
            "with `fleet key claims --trust FILE`, or say --optional"
        )
    return ClaimsRule(keys, value["required"])


def policy_words(before: Targets, after: Targets) -> Iterator[str]:
    """What changes of the rule, in words; what cannot be understood is shown as it is."""
    values = [one.unrecognized_fields.get(CLAIMS_FIELD) for one in (before, after)]
    if values[0] == values[1]:
        return
    try:
        old, new = claims_rule(before), claims_rule(after)
    except RefusedError as error:
        yield f"field {CLAIMS_FIELD} changes: {error}"
        return
    lines = []
    if old.required != new.required:
        needs = "NEEDS an attestation" if new.required else "needs NO attestation"
        lines.append(f"from now on a new bundle {needs} of its checks")
    olds, news = ({key.keyid: key for key in one.keys} for one in (old, new))
    for keyid, key in news.items():
        if olds.get(keyid) != key:
            lines.append(f"attestations of key {key_name(key)} {keyid} are believed")
    for keyid, key in olds.items():
        if keyid not in news:
            lines.append(f"attestations of key {key_name(key)} {keyid} are NO LONGER believed")
    yield from lines or [f"field {CLAIMS_FIELD} is written otherwise and says the same"]


def require_attested(
    rule: ClaimsRule, bundle: Attestable, offered: Iterable[bytes]
) -> tuple[Attestation, ...]:
    """The attestations of a bundle that is to be released.

    Args:
        rule: of the targets role that is published.
        bundle: the one, as the release role is to say it.
        offered: attestations that came along, or lie here; others than the bundle's are passed over.

    Raises:
        RefusedError: there is none and the rule asks for one; one that the release names is not there.
        ClaimError: one is not by a trusted key, not about this manifest, or says that a check did not pass.
    """
    found = {attestation_digest(raw): raw for raw in offered}
    if not bundle.attestations:
        if rule.required:
            raise RefusedError(
                f"{bundle.path} comes without an attestation of its checks, and this fleet releases no bundle without "
                f"one of {_trusted(rule)}. Make it where the bundle was built: `fleet bundle attest DIR`, then publish"
            )
        return ()
    missing = [digest for digest in bundle.attestations if digest not in found]
    if missing:
        raise RefusedError(
            f"{bundle.path} names the attestation {missing[0][:12]}, which did not come along: hand it in with the "
            "bundle, `fleet bundle publish DIR --attestation FILE`"
        )
    return tuple(_held(rule, bundle, found[digest]) for digest in bundle.attestations)


def attested_by(rule: ClaimsRule, attestation: Attestation) -> str:
    """Result, checks and keys in one line."""
    checked = attestation.checked
    parts = [f"{attestation.result} by {', '.join(rule.key(one) for one in attestation.keyids)}"]
    for word, names in (
        ("passed", checked.passed),
        ("warned", checked.warned),
        ("FAILED", checked.failed),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            parts.append(f"{word}: {', '.join(names[:_SHOWN])}{more}")
    if checked.ran_on:
        parts.append(", ".join(f"{key} {value}" for key, value in checked.ran_on.items()))
    return clean_text("; ".join(parts), 600)


def _held(rule: ClaimsRule, bundle: Attestable, raw: bytes) -> Attestation:
    try:
        said = verify_attestation(raw, rule.keys, bundle.sha256)
    except ClaimError as error:
        raise ClaimError(f"{bundle.path} cannot be released: {error}") from error
    if said.result != Result.PASSED:
        names = (*said.checked.failed, *said.checked.warned)
        raise ClaimError(
            f"{bundle.path} cannot be released: its attestation says {said.result} "
            f"({clean_text(', '.join(names[:_SHOWN]), 200) or 'no check was run'}). Correct what the checks found, "
            "build and attest again"
        )
    return said


def _trusted(rule: ClaimsRule) -> str:
    names = [key_name(key) for key in rule.keys]
    return f"the attestation key{'s' if len(names) > 1 else ''} {', '.join(names)}"
