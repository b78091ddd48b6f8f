"""``model.sig``: an OpenSSF Model Signing signature over a bundle's files, by the method with an EC P-256 key.

Rules kept here:

* It covers every file of the bundle but itself and the manifest, which names it: those two are in the list of
  ignored paths that the signature itself carries, so that public verifiers pass over them unasked.
* The same files, name and key make the same bytes (RFC 6979): a build can be repeated bit for bit.
* What is verified is compared with what the manifest says of each file, so that nothing is hashed twice.

Format: https://github.com/ossf/model-signing-spec, as ``model_signing`` 1.1 reads it: a Sigstore bundle v0.3 around an
in-toto statement, the public key named by a digest of its PEM form.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.dsse import Envelope

from agent.bundle import MANIFEST_NAME
from fleet.claims.envelope import (
    PAYLOAD_TYPE,
    json_object,
    parse_statement,
    statement_bytes,
)
from fleet.claims.errors import ClaimError
from fleet.errors import ServerError

__all__ = [
    "MAX_SIGNATURE_BYTES",
    "SIGNATURE_NAME",
    "key_hint",
    "sign_files",
    "signature_hint",
    "verify_files",
]

SIGNATURE_NAME: Final = "model.sig"
MAX_SIGNATURE_BYTES: Final = 1024 * 1024
MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
_NOT_COVERED: Final = (MANIFEST_NAME, SIGNATURE_NAME)


def sign_files(name: str, digests: Mapping[str, str], key: EllipticCurvePrivateKey) -> bytes:
    """Sign the files of a bundle.

    Args:
        name: of the model, for readers.
        digests: lower-case hex sha256 of each file by its name in the bundle.
        key: on the curve P-256.

    Returns:
        The content of ``model.sig``.

    Raises:
        ServerError: the cryptographic library of this machine cannot sign deterministically.
    """
    covered = _covered(digests)
    whole = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in covered.values()))
    predicate = {
        "serialization": {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": False,
            "ignore_paths": list(_NOT_COVERED),
        },
        "resources": [
            {"name": file, "algorithm": "sha256", "digest": digest}
            for file, digest in covered.items()
        ],
    }
    payload = statement_bytes([(name, whole.hexdigest())], PREDICATE_TYPE, predicate)
    try:
        signature = key.sign(_signed(payload), ECDSA(SHA256(), deterministic_signing=True))
    except UnsupportedAlgorithm as error:
        raise ServerError(
            f"{SIGNATURE_NAME} cannot be made here: {error}. Install the `cryptography` that pip brings, or build "
            "without --claims-key"
        ) from error
    body = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": key_hint(key.public_key())},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(body, sort_keys=True).encode() + b"\n"


def verify_files(raw: bytes, digests: Mapping[str, str], key: EllipticCurvePublicKey) -> None:
    """Check a signature against what the manifest says of the files.

    Args:
        raw: the content of ``model.sig``.
        digests: lower-case hex sha256 of each file by its name in the bundle.
        key: the public key that must have signed.

    Raises:
        ClaimError: it cannot be read, is by another key, or over other files; says which.
    """
    hint, payload, signature = _parts(raw)
    if hint != key_hint(key):
        raise ClaimError(
            f"{SIGNATURE_NAME} is signed by the key {hint[:12]}, not by {key_hint(key)[:12]}: give the public key of "
            "who built the bundle"
        )
    try:
        key.verify(signature, _signed(payload), ECDSA(SHA256()))
    except InvalidSignature as error:
        raise ClaimError(
            f"{SIGNATURE_NAME} is not a signature of key {hint[:12]} over what it says: it was altered"
        ) from error
    signed = _resources(payload)
    covered = _covered(digests)
    for name in sorted(signed.keys() | covered.keys()):
        if signed.get(name) != covered.get(name):
            where = "is not signed" if name not in signed else "is not as it was signed"
            where = "is signed and not in the bundle" if name not in covered else where
            raise ClaimError(f"{SIGNATURE_NAME}: {name[:200]!r} {where}; build the bundle again")


def signature_hint(raw: bytes) -> str:
    """Whose signature it claims to be: the digest of a public key, see :func:`key_hint`.

    Raises:
        ClaimError: it cannot be read.
    """
    return _parts(raw)[0]


def key_hint(key: EllipticCurvePublicKey) -> str:
    """How the format names a public key: sha256 of its PEM form, in lower-case hex."""
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _covered(digests: Mapping[str, str]) -> dict[str, str]:
    """What is signed, in the order of paths that the format asks for."""
    names = sorted(set(digests) - set(_NOT_COVERED), key=PurePosixPath)
    return {name: digests[name] for name in names}


def _signed(payload: bytes) -> bytes:
    return Envelope(payload, PAYLOAD_TYPE, {}).pae()


def _parts(raw: bytes) -> tuple[str, bytes, bytes]:
    """Hint of the key, payload, signature."""
    body = json_object(raw, MAX_SIGNATURE_BYTES, SIGNATURE_NAME)
    if body.get("mediaType") != MEDIA_TYPE:
        raise ClaimError(f"{SIGNATURE_NAME} is no Sigstore bundle of version 0.3; make it anew")
    try:
        envelope: dict[str, Any] = body["dsseEnvelope"]
        hint = body["verificationMaterial"]["publicKey"]["hint"]
        (signature,) = envelope["signatures"]
        payload, sig = (
            base64.b64decode(text, validate=True)
            for text in (envelope["payload"], signature["sig"])
        )
        if envelope["payloadType"] != PAYLOAD_TYPE or not isinstance(hint, str):
            raise ValueError("another payload, or no name of a key")
    except (ValueError, TypeError, KeyError) as error:  # whatever is not as the format has it
        said = f"{type(error).__name__}: {str(error)[:120]}"
        raise ClaimError(
            f"{SIGNATURE_NAME} does not have the form of a signature by key ({said}); make it anew"
        ) from error
    return hint, payload, sig


def _resources(payload: bytes) -> dict[str, str]:
    statement = parse_statement(payload, MAX_SIGNATURE_BYTES, PREDICATE_TYPE, SIGNATURE_NAME)
    try:
        resources = statement.predicate["resources"]
        found = {str(one["name"]): str(one["digest"]) for one in resources}
        if any(one["algorithm"] != "sha256" for one in resources) or len(found) != len(resources):
            raise ValueError("another digest than sha256, or one file twice")
    except (ValueError, TypeError, KeyError) as error:
        raise ClaimError(f"{SIGNATURE_NAME} lists no files: {str(error)[:120]}") from error
    return found
