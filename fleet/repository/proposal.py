"""A change of keys as the files that have to be signed for it, and who has to sign them.

Rules kept here:

* A proposal is whole: with it every file is signed by the keys that its delegator names.
* Signing adds signatures and nothing else, so that copies of a proposal can be signed in several
  places.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Root, Targets

from fleet.repository.generation import Generation
from fleet.repository.roles import ONLINE_ROLES, TOP_ROLES, to_bytes
from fleet.repository.rotation import (
    KeyChange,
    Lack,
    lacks_of_role,
    lacks_of_root,
    next_role,
    next_root,
    next_targets,
    retired_keys,
)
from fleet.repository.signers import add_signature

__all__ = ["Proposal", "propose", "sign_proposal"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """The next versions of some roles, signed by nobody or by some.

    Attributes:
        base: what they come after.
        metadata: by role; ``root`` and ``targets`` say whose keys count for the others.
    """

    base: Generation
    metadata: "Mapping[str, Metadata[Any]]"

    @property
    def root(self) -> Root:
        """The root that counts once the proposal does."""
        following = self.metadata.get("root")
        return self.base.root if following is None else following.signed

    @property
    def targets(self) -> Targets:
        """The top role that counts once the proposal does."""
        following = self.metadata.get("targets")
        return self.base.targets("targets") if following is None else following.signed

    @property
    def lacks(self) -> tuple[Lack, ...]:
        """The signatures still needed; none when it can be adopted."""
        found: list[Lack] = []
        for role, metadata in self.metadata.items():
            if role == "root":
                found += lacks_of_root(self.base.root, metadata)
            else:
                delegator = self.root if role == "targets" else self.targets
                found += lacks_of_role(delegator, role, metadata)
        return tuple(found)

    def signer_ids(self, role: str) -> frozenset[str]:
        """Ids of the keys whose signature counts under a role's file."""
        if role == "root":
            sides = (self.base.root, self.root)
            return frozenset(key for side in sides for key in side.roles["root"].keyids)
        delegator = self.root if role == "targets" else self.targets
        return frozenset(delegator.get_delegated_role(role).keyids)

    def files(self) -> dict[str, bytes]:
        """The files by role, with the signatures they have."""
        return {role: to_bytes(metadata) for role, metadata in self.metadata.items()}


def propose(base: Generation, change: KeyChange, now_s: float) -> Proposal:
    """What has to be signed to change the keys of a role; unsigned.

    Args:
        base: what is signed now.
        change: the role's new and revoked keys.
        now_s: the time of signing, in seconds since the epoch.

    Raises:
        NotFoundError: there is no such role or key.
        RefusedError: the change breaks a rule of :mod:`fleet.repository.rotation`.
    """
    role = change.role
    if role in TOP_ROLES:
        retired = retired_keys([file.metadata.signed for file in base.roots])
        metadata: dict[str, Metadata[Any]] = {
            "root": next_root(base.root, [change], now_s, retired)
        }
        carried = role == "targets"
    else:
        metadata = {"targets": next_targets(base.targets("targets"), [change], now_s)}
        carried = role not in ONLINE_ROLES
    proposal = Proposal(base, metadata)
    if carried:
        delegator = proposal.root if role == "targets" else proposal.targets
        if lacks_of_role(delegator, role, base.roles[role].metadata):
            metadata[role] = next_role(base.targets(role), role, now_s)
    return proposal


def sign_proposal(proposal: Proposal, signers: Iterable[Signer]) -> None:
    """Add the signatures of every key that counts.

    Raises:
        ConfigError: a key does not sign.
    """
    for signer in signers:
        key_id = signer.public_key.keyid
        for role, metadata in proposal.metadata.items():
            if key_id in proposal.signer_ids(role) and key_id not in metadata.signatures:
                add_signature(metadata, signer, f"key {key_id[:12]}")
