"""The attestation of the checks that a bundle passed: an in-toto test-result v0.1, about the bundle's manifest.

Rules kept here:

* An attestation speaks for the manifest whose digest is its subject, and for no other build of the same version.
* Nothing it says is believed before the signature of a trusted key over exactly these bytes is.
* A result is worked out from the checks; one that contradicts them, or names none, is refused.

Format: https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SslibError
from securesystemslib.signer import Key, Signer

from agent.runtime.verdict import clean_text
from fleet.claims.envelope import (
    PAYLOAD_TYPE,
    json_object,
    parse_envelope,
    parse_statement,
    statement_bytes,
)
from fleet.claims.errors import ClaimError

__all__ = [
    "ATTESTATION_ENDING",
    "MAX_ATTESTATION_BYTES",
    "PREDICATE_TYPE",
    "Attestation",
    "Checked",
    "Result",
    "attestation_digest",
    "make_attestation",
    "read_attestation",
    "verify_attestation",
]

PREDICATE_TYPE: Final = "https://in-toto.io/attestation/test-result/v0.1"
ATTESTATION_ENDING: Final = ".intoto.json"
"""An attestation lies beside the bundle's folder, under its name and this: the manifest cannot name it."""
MAX_ATTESTATION_BYTES: Final = 256 * 1024
MAX_CHECKS: Final = 2048
MAX_TEXT_CHARS: Final = 300
_WHAT: Final = "the attestation"


class Result(StrEnum):
    """Of all checks together, as the format has it."""

    PASSED = "PASSED"
    WARNED = "WARNED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Checked:
    """Names of checks by how they ended. ``ran_on``: what they ran with (versions, machine), for readers."""

    passed: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    ran_on: Mapping[str, str] = field(default_factory=dict)

    @property
    def result(self) -> Result:
        """The worst of them; FAILED where nothing was checked."""
        if self.failed or not (self.passed or self.warned):
            return Result.FAILED
        return Result.WARNED if self.warned else Result.PASSED


@dataclass(frozen=True, slots=True)
class Attestation:
    """What an attestation says. ``subjects``: pairs of name and sha256. ``keyids``: who is known to have signed it, or
    where nothing was verified who is said to."""

    subjects: tuple[tuple[str, str], ...]
    checked: Checked
    keyids: tuple[str, ...]

    @property
    def result(self) -> Result:
        """Of all checks together."""
        return self.checked.result


def attestation_digest(raw: bytes) -> str:
    """The name of an attestation: lower-case hex sha256 of its bytes."""
    return hashlib.sha256(raw).hexdigest()


def make_attestation(path: str, manifest_sha256: str, checked: Checked, signer: Signer) -> bytes:
    """Attest how the checks of a bundle ended.

    Args:
        path: the bundle, ``bundles/CLASS/MODEL-VERSION``.
        manifest_sha256: digest of its manifest.
        checked: how each check ended.
        signer: the key to attest with.

    Returns:
        The file: a signed envelope as JSON.
    """
    about = {"name": f"{path}/manifest.json", "digest": {"sha256": manifest_sha256}}
    predicate = {
        "result": str(checked.result),
        "configuration": [{**about, "annotations": dict(checked.ran_on)}],
        "passedTests": list(checked.passed),
        "warnedTests": list(checked.warned),
        "failedTests": list(checked.failed),
    }
    payload = statement_bytes([(path, manifest_sha256)], PREDICATE_TYPE, predicate)
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), indent=1, sort_keys=True).encode() + b"\n"


def read_attestation(raw: bytes) -> Attestation:
    """What an attestation says; nobody's signature is checked.

    Raises:
        ClaimError: it is too large, or no attestation of checks.
    """
    envelope = parse_envelope(json_object(raw, MAX_ATTESTATION_BYTES, _WHAT), _WHAT)
    return _attestation(envelope)


def verify_attestation(raw: bytes, keys: Sequence[Key], manifest_sha256: str) -> Attestation:
    """What an attestation says, once it is known to be by one of these keys and about this manifest.

    Args:
        raw: the file, of unknown origin.
        keys: the attestation keys that are trusted.
        manifest_sha256: digest of the manifest that it has to speak for.

    Raises:
        ClaimError: it is not; says whose signatures it carries, or what it is about.
    """
    envelope = parse_envelope(json_object(raw, MAX_ATTESTATION_BYTES, _WHAT), _WHAT)
    by = _require_signed(envelope, keys)
    said = replace(_attestation(envelope), keyids=by)
    if manifest_sha256 not in {digest for _, digest in said.subjects}:
        about = ", ".join(
            f"{clean_text(name, 80)} with manifest {clean_text(digest, 12)}"
            for name, digest in said.subjects[:3]
        )
        raise ClaimError(
            f"{_WHAT} is about {about}, not about manifest {manifest_sha256[:12]}: another bundle or another "
            "build was checked. Check this one: `fleet bundle attest`"
        )
    return said


def _require_signed(envelope: Envelope, keys: Sequence[Key]) -> tuple[str, ...]:
    """Ids of the keys that have signed."""
    trusted = [key.keyid for key in keys]
    mine = [keyid for keyid in envelope.signatures if keyid in trusted]
    if not mine:
        by = ", ".join(clean_text(str(keyid), 12) for keyid in envelope.signatures) or "nobody"
        raise ClaimError(
            f"{_WHAT} is signed by no attestation key that this fleet trusts: it is signed by {by}, trusted are "
            f"{', '.join(keyid[:12] for keyid in trusted) or 'none'}. Attest with a trusted key, or have the targets "
            "keys trust this one: `fleet key claims --trust`"
        )
    try:
        return tuple(envelope.verify(list(keys), 1))
    except (SslibError, ValueError, TypeError) as error:
        raise ClaimError(
            f"{_WHAT} carries a signature of key {mine[0][:12]} that is not over these bytes: it was altered. "
            "Attest again: `fleet bundle attest`"
        ) from error


def _attestation(envelope: Envelope) -> Attestation:
    statement = parse_statement(envelope.payload, MAX_ATTESTATION_BYTES, PREDICATE_TYPE, _WHAT)
    checked = _checked(statement.predicate)
    said = statement.predicate.get("result")
    if said != checked.result:
        raise ClaimError(
            f"{_WHAT} contradicts itself: it says {clean_text(str(said), 40)}, its checks say {checked.result} "
            f"({len(checked.passed)} passed, {len(checked.warned)} warned, {len(checked.failed)} failed)"
        )
    return Attestation(statement.subjects, checked, tuple(envelope.signatures))


def _checked(predicate: Mapping[str, Any]) -> Checked:
    passed, warned, failed = (
        _names(predicate, key) for key in ("passedTests", "warnedTests", "failedTests")
    )
    configuration = predicate.get("configuration")
    if not isinstance(configuration, list):
        raise ClaimError(f"{_WHAT} has no configuration, which its format asks for")
    ran_on: dict[str, str] = {}
    for one in configuration[:1]:
        notes = one.get("annotations") if isinstance(one, dict) else None
        if isinstance(notes, dict):
            ran_on = {
                clean_text(key, 40): clean_text(str(value), 80)
                for key, value in list(notes.items())[:16]
            }
    return Checked(passed, warned, failed, ran_on)


def _names(predicate: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = predicate.get(key, [])
    if (
        not isinstance(value, list)
        or len(value) > MAX_CHECKS
        or not all(isinstance(name, str) and 0 < len(name) <= MAX_TEXT_CHARS for name in value)
    ):
        raise ClaimError(
            f"{key} in {_WHAT} is no list of at most {MAX_CHECKS} names of 1 to {MAX_TEXT_CHARS} characters"
        )
    return tuple(value)
