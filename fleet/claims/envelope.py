"""In-toto statements in signed envelopes (DSSE), the shape that both kinds of signed claims have.

Rules kept here: bytes are bounded before they are parsed; what is parsed is exactly what was signed; a statement is
read as in-toto says, unknown fields are passed over and the known ones have to be there.

Formats: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md,
https://github.com/secure-systems-lab/dsse/blob/master/envelope.md.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from securesystemslib.dsse import Envelope

from fleet.claims.errors import ClaimError

__all__ = [
    "PAYLOAD_TYPE",
    "Statement",
    "json_object",
    "parse_envelope",
    "parse_statement",
    "statement_bytes",
]

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
MAX_SIGNATURES: Final = 16
MAX_SUBJECTS: Final = 256


@dataclass(frozen=True, slots=True)
class Statement:
    """``subjects``: pairs of name and lower-case hex sha256 (empty where it has none)."""

    subjects: tuple[tuple[str, str], ...]
    predicate_type: str
    predicate: Mapping[str, Any]


def statement_bytes(
    subjects: Sequence[tuple[str, str]], predicate_type: str, predicate: Mapping[str, Any]
) -> bytes:
    """The payload: JSON whose bytes depend on its values alone. ``subjects`` as in :class:`Statement`."""
    body = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects],
        "predicateType": predicate_type,
        "predicate": predicate,
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def json_object(raw: bytes, max_bytes: int, what: str) -> dict[str, Any]:
    """A JSON object of bounded size; ``what`` names it in messages.

    Raises:
        ClaimError: it is too large, no JSON or no object.
    """
    if len(raw) > max_bytes:
        raise ClaimError(f"{what} has more than {max_bytes} bytes; make it anew")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ClaimError(f"{what} is not JSON; make it anew") from error
    if not isinstance(body, dict):
        raise ClaimError(f"{what} is not a JSON object; make it anew")
    return body


def parse_envelope(value: object, what: str) -> Envelope:
    """An envelope from its JSON; its form is checked and no signature.

    Raises:
        ClaimError: it does not have the form, or holds no in-toto statement.
    """
    try:
        if not isinstance(value, dict) or len(value["signatures"]) > MAX_SIGNATURES:
            raise ValueError(f"no object, or more than {MAX_SIGNATURES} signatures")
        envelope = Envelope.from_dict(json.loads(json.dumps(value)))  # it takes it apart
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        # Whatever the library trips over is an envelope that somebody has spoilt.
        said = f"{type(error).__name__}: {str(error)[:120]}"
        raise ClaimError(f"{what} is no signed envelope ({said}); make it anew") from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise ClaimError(
            f"{what} holds {str(envelope.payload_type)[:80]!r}, not {PAYLOAD_TYPE!r}; make it anew"
        )
    return envelope


def parse_statement(payload: bytes, max_bytes: int, predicate_type: str, what: str) -> Statement:
    """The statement in an envelope.

    Raises:
        ClaimError: it is no in-toto statement of this kind.
    """
    body = json_object(payload, max_bytes, f"the statement in {what}")
    subjects, predicate = body.get("subject"), body.get("predicate")
    if body.get("_type") != STATEMENT_TYPE or body.get("predicateType") != predicate_type:
        raise ClaimError(
            f"{what} is a statement of type {str(body.get('predicateType'))[:80]!r}, not {predicate_type!r}"
        )
    if (
        not isinstance(predicate, dict)
        or not isinstance(subjects, list)
        or not 1 <= len(subjects) <= MAX_SUBJECTS
    ):
        raise ClaimError(f"{what} has no predicate, or not 1 to {MAX_SUBJECTS} subjects")
    return Statement(
        tuple(_subject(subject, what) for subject in subjects), predicate_type, predicate
    )


def _subject(value: object, what: str) -> tuple[str, str]:
    digest = value.get("digest") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(digest, dict):
        raise ClaimError(f"{what} has a subject without a digest")
    name, sha256 = value.get("name", ""), digest.get("sha256", "")
    if not isinstance(name, str) or not isinstance(sha256, str):
        raise ClaimError(f"{what} has a subject whose name or sha256 is no text")
    return name, sha256
