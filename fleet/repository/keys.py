"""Signing keys as files: PEM PKCS #8, readable by their owner alone, encrypted where wanted.

Keys of roles are Ed25519. The key of claims about bundles is EC P-256: public verifiers of ``model.sig`` ask for that.

Online keys are ``keys/ROLE.pem``, one a role. Offline keys are made as ``keys/offline/ROLE-N.pem`` and taken
away from there.

Rules kept here: a private key never leaves its file except to sign; an existing key is never overwritten.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from fleet.errors import ConfigError, ConflictError
from fleet.repository.files import write_durable
from fleet.repository.roles import KEY_NAME_FIELD

__all__ = [
    "CLAIMS",
    "KeyFile",
    "create_claims_key",
    "create_key",
    "key_files",
    "key_name",
    "key_path",
    "load_claims_key",
    "load_claims_public_key",
    "load_key",
    "named_public_key",
    "offline_folder",
    "offline_key_path",
    "read_password",
]

CLAIMS: Final = "claims"
"""Name of the key of claims about bundles; it signs no role."""
_PASSWORD_MAX_BYTES: Final = 1024
_PUBLIC_MAX_BYTES: Final = 64 * 1024
_MAKE_ONE: Final = "`fleet key new-claims` makes one"


def key_path(home: Path, role: str) -> Path:
    """Where the one local key of a role is kept."""
    return home / "keys" / f"{role}.pem"


def offline_folder(home: Path) -> Path:
    """Where offline keys are made, and from where they are to be taken away."""
    return home / "keys" / "offline"


def offline_key_path(home: Path, role: str, number: int) -> Path:
    """Where an offline key is made; ``number`` counts from 1."""
    return offline_folder(home) / f"{role}-{number}.pem"


def key_name(key: object) -> str:
    """What people call a public key: its name in the metadata, else the beginning of its id."""
    assert hasattr(key, "unrecognized_fields")
    assert hasattr(key, "keyid")
    name = key.unrecognized_fields.get(KEY_NAME_FIELD)
    return name[:64] if isinstance(name, str) and name.isprintable() else str(key.keyid)[:12]


def create_key(path: Path, password: bytes | None = None) -> CryptoSigner:
    """Make a new key and store it; its public half carries the file's name for people.

    Raises:
        ConflictError: there is a key already.
        ServerError: it cannot be stored.
    """
    if path.exists():
        raise ConflictError(f"{path} exists already; a signing key is never overwritten")
    return _store(path, Ed25519PrivateKey.generate(), password)


def create_claims_key(path: Path, public: Path, password: bytes | None = None) -> CryptoSigner:
    """Make a new key for claims about bundles and store both halves, ``public`` as SubjectPublicKeyInfo.

    Raises:
        ConflictError: there is a key already.
        ServerError: it cannot be stored.
    """
    for place in (path, public):
        if place.exists():
            raise ConflictError(f"{place} exists already; a key is never overwritten")
    private = generate_private_key(SECP256R1())
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_durable(public, pem)
    return _store(path, private, password)


def _store(
    path: Path, private: Ed25519PrivateKey | EllipticCurvePrivateKey, password: bytes | None
) -> CryptoSigner:
    signer = CryptoSigner(private, named_public_key(private.public_key(), path.stem))
    content = signer.private_bytes
    if password is not None:
        encryption = BestAvailableEncryption(password)
        content = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    write_durable(path, content, mode=0o600)
    return signer


def named_public_key(public: PublicKeyTypes, name: str) -> SSlibKey:
    """A public key as the metadata has it, with a name for people."""
    key = SSlibKey.from_crypto(public)
    key.unrecognized_fields[KEY_NAME_FIELD] = name
    return key


def load_key(path: Path, password: bytes | None = None) -> CryptoSigner:
    """Read a key.

    Raises:
        ConfigError: the file is missing, unreadable or no key in PEM PKCS #8, or the password is missing or wrong.
    """
    private = _load_private(path, password)
    try:
        return CryptoSigner(private)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} is a key of a kind that signs no metadata: {error}. Use an Ed25519 or EC P-256 key"
        ) from error


def load_claims_key(path: Path, password: bytes | None = None) -> EllipticCurvePrivateKey:
    """Read a private key for claims about bundles.

    Raises:
        ConfigError: as :func:`load_key`, or it is not on the curve P-256.
    """
    private = _load_private(path, password)
    if not isinstance(private, EllipticCurvePrivateKey) or not isinstance(private.curve, SECP256R1):
        raise ConfigError(f"{path} is no EC P-256 key, which model.sig asks for; {_MAKE_ONE}")
    return private


def load_claims_public_key(path: Path) -> EllipticCurvePublicKey:
    """Read the public half of a key for claims about bundles.

    Raises:
        ConfigError: the file cannot be read, or is no public EC P-256 key in PEM.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_PUBLIC_MAX_BYTES)
        public = load_pem_public_key(raw)
    except OSError as error:
        raise ConfigError(
            f"cannot read the public key {path}: {error.strerror or error}. Say where it is, or ask whoever builds "
            "the bundles for it"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} is no public key in PEM: {error}. Give the file that lies beside the private key, NAME.pub.pem"
        ) from error
    if not isinstance(public, EllipticCurvePublicKey) or not isinstance(public.curve, SECP256R1):
        raise ConfigError(f"{path} is no public EC P-256 key; {_MAKE_ONE}")
    return public


def _load_private(path: Path, password: bytes | None) -> PrivateKeyTypes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the signing key {path}: {error.strerror or error}. Put the key there, or "
            "run this where the key is kept"
        ) from error
    encrypted = _is_encrypted(raw)
    if encrypted and password is None:
        raise ConfigError(f"{path} is encrypted: say where its password is, --password-file FILE")
    try:
        return load_pem_private_key(raw, password=password if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise ConfigError(
                f"{path} cannot be decrypted: {error}. Check the password, or restore the key "
                "from its backup"
            ) from error
        raise ConfigError(
            f"{path} is not a private key in PEM PKCS #8: {error}. Restore the key from its backup"
        ) from error


def read_password(path: Path) -> bytes:
    """The password in a file, without the end of its line.

    Raises:
        ConfigError: the file cannot be read, is empty or too long.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_PASSWORD_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the password file {path}: {error.strerror}") from error
    password = raw.rstrip(b"\r\n")
    if not password or len(raw) > _PASSWORD_MAX_BYTES:
        raise ConfigError(
            f"{path} must hold a password of 1 to {_PASSWORD_MAX_BYTES} bytes on one line"
        )
    return password


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A private key that lies in a fleet folder.

    Attributes:
        path: the file.
        keyid: the id of the key; empty when the file is encrypted or damaged.
        note: ``""``, ``encrypted`` or ``unreadable``.
    """

    path: Path
    keyid: str = ""
    note: str = ""


def key_files(home: Path) -> tuple[KeyFile, ...]:
    """Every private key in a fleet folder, as far as it can be told without a password."""
    folders = (home / "keys", offline_folder(home))
    paths = [path for folder in folders for path in sorted(folder.glob("*.pem"))]
    return tuple(_key_file(path) for path in paths)


def _key_file(path: Path) -> KeyFile:
    try:
        if _is_encrypted(path.read_bytes()):
            return KeyFile(path, note="encrypted")
        return KeyFile(path, load_key(path).public_key.keyid)
    except (OSError, ConfigError):
        return KeyFile(path, note="unreadable")  # shown as such; showing keys goes on


def _is_encrypted(raw: bytes) -> bool:
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in raw
