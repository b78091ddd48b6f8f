"""Signing keys as files: Ed25519, PEM PKCS #8, one a role, readable by their owner alone.

Rules kept here: a private key never leaves its file except to sign; an existing key is never
overwritten.
"""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from fleet.errors import ConfigError, ConflictError
from fleet.repository.files import write_durable

__all__ = ["create_key", "key_path", "load_key"]


def key_path(home: Path, role: str) -> Path:
    """Where the key of a role is kept."""
    return home / "keys" / f"{role}.pem"


def create_key(path: Path) -> CryptoSigner:
    """Make a new key and store it.

    Raises:
        ConflictError: there is a key already.
        ServerError: it cannot be stored.
    """
    if path.exists():
        raise ConflictError(f"{path} exists already; a signing key is never overwritten")
    signer = CryptoSigner.generate_ed25519()
    write_durable(path, signer.private_bytes, mode=0o600)
    return signer


def load_key(path: Path) -> CryptoSigner:
    """Read a key.

    Raises:
        ConfigError: the file is missing, unreadable or no Ed25519 key in PEM PKCS #8.
    """
    try:
        return CryptoSigner(load_pem_private_key(path.read_bytes(), password=None))
    except OSError as error:
        raise ConfigError(
            f"cannot read the signing key {path}: {error.strerror or error}. Put the key there, or "
            "run this where "
            f"the key is kept"
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} is not an unencrypted private key in PEM PKCS #8: {error}. Restore the key "
            "from its backup"
        ) from error
