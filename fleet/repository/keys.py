"""Signing keys as files: Ed25519, PEM PKCS #8, readable by their owner alone, encrypted where wanted.

Online keys are ``keys/ROLE.pem``, one a role. Offline keys are made as ``keys/offline/ROLE-N.pem`` and taken
away from there.

Rules kept here: a private key never leaves its file except to sign; an existing key is never overwritten.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from fleet.errors import ConfigError, ConflictError
from fleet.repository.files import write_durable
from fleet.repository.roles import KEY_NAME_FIELD

__all__ = [
    "KeyFile",
    "create_key",
    "key_files",
    "key_name",
    "key_path",
    "load_key",
    "offline_folder",
    "offline_key_path",
    "read_password",
]

_PASSWORD_MAX_BYTES: Final = 1024


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
    private = Ed25519PrivateKey.generate()
    public = SSlibKey.from_crypto(private.public_key())
    public.unrecognized_fields[KEY_NAME_FIELD] = path.stem
    signer = CryptoSigner(private, public)
    content = signer.private_bytes
    if password is not None:
        encryption = BestAvailableEncryption(password)
        content = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    write_durable(path, content, mode=0o600)
    return signer


def load_key(path: Path, password: bytes | None = None) -> CryptoSigner:
    """Read a key.

    Raises:
        ConfigError: the file is missing, unreadable or no key in PEM PKCS #8, or the password is missing or wrong.
    """
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
        return CryptoSigner(load_pem_private_key(raw, password=password if encrypted else None))
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
