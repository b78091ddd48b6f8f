"""What follows when people have signed the next version of a role: which files are to be published together.

Rules kept here: every check comes before anything is written; new delegations come with a file of each role that
they verify, so that no device is led to a role that nobody has signed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tuf.api.metadata import Targets

from fleet.errors import RefusedError
from fleet.repository.acceptance import (
    check_delegations,
    check_paths,
    check_root,
    check_signed,
    check_size,
    parse_role,
    require_next,
    stale_roles,
)
from fleet.repository.generation import Generation, SignedFile
from fleet.repository.online import OnlineKeys
from fleet.repository.release import read_entries
from fleet.repository.roles import is_release_role
from fleet.repository.rules import check_kept, next_rollout

__all__ = ["Offer", "Takeover", "take_over"]


@dataclass(frozen=True, slots=True)
class Offer:
    """The next version of a role, as somebody handed it in.

    Attributes:
        role: root, targets, a release role or emergency.
        raw: its file.
        now_s: the time, in seconds since the epoch.
        companions: files of other roles that have to be published with it, by role.
        removed: bundles that may vanish.
    """

    role: str
    raw: bytes
    now_s: float
    companions: Mapping[str, bytes]
    removed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Takeover:
    """What is to be published.

    Attributes:
        version: the offered role's.
        roles: new files of targets and of delegated roles.
        root: the next root.
    """

    version: int
    roles: Mapping[str, SignedFile]
    root: SignedFile | None = None


def take_over(current: Generation, offer: Offer, keys: OnlineKeys) -> Takeover:
    """Check an offer against what is published.

    Raises:
        RefusedError, ConflictError: as :meth:`fleet.repository.Repository.accept`.
        ConfigError: a key of the server cannot be used.
    """
    check_size(offer.role, len(offer.raw))
    file = SignedFile(parse_role(offer.role, offer.raw), offer.raw)
    if offer.role == "root":
        check_root(current, file.metadata, offer.now_s)
        keys.forget()  # the new root may name other ones
        return Takeover(file.version, {}, file)
    if offer.role == "targets":
        return Takeover(file.version, _delegations(current, file, offer, keys))
    top = current.targets("targets")
    _check_delegated(current, offer.role, file, offer, top)
    require_next(offer.role, file.version, current.roles[offer.role].version)
    _check_kept(current, offer.role, file, offer.removed)
    return Takeover(file.version, {offer.role: file})


def _delegations(
    current: Generation, file: SignedFile, offer: Offer, keys: OnlineKeys
) -> dict[str, SignedFile]:
    """Other delegations, with a file of every role that they verify."""
    top: Targets = file.metadata.signed
    check_signed(current, "targets", file.metadata, offer.now_s)
    require_next("targets", file.version, current.roles["targets"].version)
    check_delegations(current.targets("targets"), top)
    keys.forget()
    stale = stale_roles(top, current.roles)
    return {"targets": file} | {role: _next(current, role, top, offer, keys) for role in stale}


def _next(
    current: Generation, role: str, top: Targets, offer: Offer, keys: OnlineKeys
) -> SignedFile:
    """The next file of a role that is new, or whose keys these delegations change."""
    raw = offer.companions.get(role)
    if raw is None and role == "rollout":
        rollout = current.targets(role)
        following = next_rollout(rollout, rollout.targets, offer.now_s)
        return keys.sign(role, following, current, top)
    if raw is None:
        raise RefusedError(
            f"the new targets metadata names other keys for {role}, and nothing that they have "
            "signed came with it: send the role's next version along"
        )
    check_size(role, len(raw))
    file = SignedFile(parse_role(role, raw), raw)
    _check_delegated(current, role, file, offer, top)
    # A role that was delegated once may come back: its version goes on from where devices know it.
    named = current.snapshot_signed.meta.get(f"{role}.json")
    require_next(role, file.version, 0 if named is None else named.version)
    if role in current.roles:
        _check_kept(current, role, file, frozenset())
    return file


def _check_delegated(
    current: Generation, role: str, file: SignedFile, offer: Offer, top: Targets
) -> None:
    check_signed(current, role, file.metadata, offer.now_s, top)
    if is_release_role(role):
        read_entries(file.metadata.signed)
    check_paths(top, role, file.metadata.signed)


def _check_kept(current: Generation, role: str, file: SignedFile, removed: frozenset[str]) -> None:
    if is_release_role(role):
        check_kept(current.targets(role), file.metadata.signed, removed)
