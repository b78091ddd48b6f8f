"""The keys that the server itself signs with.

Rules kept here: a key is read when it is first needed, and again after the roles have changed; what it signs is
verified before it is used, so that a wrong key signs nothing into the world.
"""

from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, Targets

from fleet.errors import ConfigError
from fleet.repository.generation import Generation, SignedFile
from fleet.repository.keys import key_path, load_key
from fleet.repository.roles import TOP_ROLES, to_bytes

__all__ = ["OnlineKeys"]


class OnlineKeys:
    """One local key a role, in ``keys/`` of a fleet folder."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._keys: dict[str, CryptoSigner] = {}

    def forget(self) -> None:
        """Read every key again when it is next needed."""
        self._keys.clear()

    def has(self, role: str) -> bool:
        """Whether there is a local key for this role."""
        return key_path(self._home, role).is_file()

    def sign(
        self, role: str, signed: Signed, by: Generation, top: Targets | None = None
    ) -> SignedFile:
        """Sign and verify.

        Args:
            role: the role.
            signed: what it is to say.
            by: the generation whose root and targets name the keys.
            top: the targets role that names them, where it is not yet part of the generation.

        Raises:
            ConfigError: the key is missing, or not the one that the fleet's metadata names.
        """
        path = key_path(self._home, role)
        if role not in self._keys:
            self._keys[role] = load_key(path)
        metadata: Metadata[Any] = Metadata(signed)
        metadata.sign(self._keys[role])
        delegator: Root | Targets = by.root
        if role not in TOP_ROLES:
            delegator = top or by.targets("targets")
        try:
            delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except (RepositoryError, ValueError) as error:
            raise ConfigError(
                f"{path} is not the {role} key of this fleet; put the right key there"
            ) from error
        return SignedFile(metadata, to_bytes(metadata))
