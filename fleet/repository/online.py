"""What the server itself signs.

Rules kept here: which key signs is said by root and targets; a key is read when it is first needed, and again when
they name another; what it signs is verified before it is used, so that a wrong key signs nothing into the world.
"""

from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, Targets

from fleet.errors import ConfigError
from fleet.repository.generation import Generation, SignedFile
from fleet.repository.keyring import OnlineKeys
from fleet.repository.keys import key_path
from fleet.repository.roles import TOP_ROLES, to_bytes
from fleet.repository.signers import add_signature

__all__ = ["ServerSigner"]


class ServerSigner:
    """Signs with the keys of one fleet folder.

    Args:
        home: the fleet folder.
        keys: where the keys lie.
    """

    def __init__(self, home: Path, keys: OnlineKeys) -> None:
        self._home = home
        self._keys = keys
        self._read: dict[str, Signer] = {}

    def has(self, role: str) -> bool:
        """Whether there is a key for this role."""
        return self._keys.has(self._home, role)

    def sign(self, role: str, signed: Signed, within: Generation) -> SignedFile:
        """Sign and verify.

        Args:
            role: the role.
            signed: what it is to say.
            within: the generation whose root and targets name the keys.

        Raises:
            ConfigError: the key is missing, does not sign, or is not the one that the fleet's metadata names.
        """
        delegator: Root | Targets = within.root
        if role not in TOP_ROLES:
            delegator = within.targets("targets")
        wanted = delegator.get_delegated_role(role).keyids
        if role not in self._read or self._read[role].public_key.keyid not in wanted:
            self._read[role] = self._keys.signer(self._home, role, wanted)
        metadata: Metadata[Any] = Metadata(signed)
        add_signature(metadata, self._read[role], f"the {role} key")
        try:
            delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except (RepositoryError, ValueError) as error:
            raise ConfigError(
                f"{key_path(self._home, role)} is not the {role} key of this fleet; put the right "
                "key there"
            ) from error
        return SignedFile(metadata, to_bytes(metadata))
