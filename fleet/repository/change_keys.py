"""Changing a key of a role in a fleet folder: plan it, sign it with the keys at hand, take it over.

Where keys that have to sign are elsewhere, the change becomes a signing request for their holders.

Rules kept here: no metadata is written before every signature that is needed is there; the new key lies in
its file before the metadata names it, and the old one goes only afterwards.
"""

from dataclasses import dataclass, field
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Key

from fleet.errors import NotFoundError, RequestError
from fleet.repository.generation import Generation
from fleet.repository.keyring import (
    KeyRing,
    fresh_key,
    key_stem,
    next_path,
    put_in_place,
    read_keyring,
    store_key,
)
from fleet.repository.keys import key_path, offline_folder
from fleet.repository.proposal import Proposal, propose, sign_proposal
from fleet.repository.repository import Repository
from fleet.repository.request import LIFE_S, SigningRequest, chain_of
from fleet.repository.roles import ONLINE_ROLES, TOP_ROLES
from fleet.repository.rotation import KeyChange, short
from fleet.repository.signers import Secrets, is_public, load_signer, public_key_of

__all__ = ["ChangedKey", "KeyWish", "change_key", "named_keys"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyWish:
    """What is asked for.

    Attributes:
        role: whose key changes.
        new_key: URI of the key it gets, private or public; empty to make one.
        revoke: the key it loses, by the beginning of its id; empty for its only one.
        keys: URIs of further private keys to sign with.
        secrets: asked for passwords and PINs.
    """

    role: str
    new_key: str = ""
    revoke: str = ""
    keys: tuple[str, ...] = ()
    secrets: Secrets = field(default_factory=Secrets)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedKey:
    """What was done, or asked for.

    Attributes:
        role: whose key changed.
        added, revoked: ids of the keys.
        versions: versions of the files that changed, by role; empty while signatures are missing.
        key_file: where a key lies that was made; None when it was given.
        request: what other holders have to sign first; None when all is done.
        unusable: why keys in the folder could not sign.
    """

    role: str
    added: str
    revoked: str
    versions: dict[str, int]
    key_file: Path | None
    request: SigningRequest | None = None
    unusable: tuple[str, ...] = ()


def change_key(home: Path, repository: Repository, wish: KeyWish, now_s: float) -> ChangedKey:
    """Give a role a new key in the place of an old one. Blocking.

    Args:
        home: the fleet folder.
        repository: what lies in it, open; nobody else may have it open. It must find the new key of
            a role that it signs itself.
        wish: which key.
        now_s: the time of signing, in seconds since the epoch.

    Raises:
        ConfigError: a key cannot be used.
        NotFoundError: there is no such role or key.
        RequestError: the role has several keys and none is named.
        RefusedError: the change breaks a rule of :mod:`fleet.repository.rotation`.
        ServerError: the folder cannot be written.
    """
    base = repository.generation
    put_in_place(home, named_keys(base))  # what a crash may have left
    ring = read_keyring(home, _signing_roles(wish.role), wish.keys, wish.secrets)
    lost = _lost_key(base, wish)
    made: CryptoSigner | None = None
    place = _place(home, wish.role, ring, lost)
    signers = list(ring.signers.values())
    if wish.new_key and is_public(wish.new_key):
        added = public_key_of(wish.new_key, wish.secrets)  # its holder signs elsewhere
    elif wish.new_key:
        given = load_signer(wish.new_key, wish.secrets)
        added = given.public_key
        signers.append(given)
    else:
        made = fresh_key(place, key_stem(place))
        added = made.public_key
        signers.append(made)
    proposal = propose(base, _change(wish.role, added, lost), now_s)
    sign_proposal(proposal, signers)
    if made is not None:
        store_key(place, made)
    if proposal.lacks:
        return ChangedKey(
            role=wish.role,
            added=added.keyid,
            revoked=lost,
            versions={},
            key_file=place if made is not None else None,
            request=_request(proposal, now_s),
            unusable=tuple(ring.unusable.values()),
        )
    repository.adopt(proposal.files(), now_s)
    moved = put_in_place(home, named_keys(repository.generation))
    return ChangedKey(
        role=wish.role,
        added=added.keyid,
        revoked=lost,
        versions=_changed_versions(base, repository.generation),
        key_file=next(iter(moved), place) if made is not None else None,
    )


def named_keys(generation: Generation) -> frozenset[str]:
    """Ids of all keys that root and targets name."""
    delegations = generation.targets("targets").delegations
    return frozenset(generation.root.keys) | frozenset(delegations.keys if delegations else ())


def _change(role: str, added: Key, lost: str) -> KeyChange:
    return KeyChange(role=role, add=(added,), revoke=frozenset({lost}))


def _signing_roles(role: str) -> tuple[str, ...]:
    """Whose keys sign a change of this role's keys; its own sign its file again."""
    delegator = "root" if role in TOP_ROLES else "targets"
    return (delegator, role)


def _lost_key(base: Generation, wish: KeyWish) -> str:
    delegator = base.root if wish.role in TOP_ROLES else base.targets("targets")
    try:
        key_ids = delegator.get_delegated_role(wish.role).keyids
    except ValueError as error:
        known = sorted({*TOP_ROLES, *base.roles})
        raise NotFoundError(
            f"there is no role {wish.role}; there are {', '.join(known)}"
        ) from error
    if not wish.revoke and len(key_ids) == 1:
        return key_ids[0]
    shown = ", ".join(short(key_id) for key_id in key_ids)
    if not wish.revoke:
        raise RequestError(
            f"{wish.role} has {len(key_ids)} keys ({shown}): say with --revoke which one goes"
        )
    found = [key_id for key_id in key_ids if key_id.startswith(wish.revoke)]
    if len(found) != 1:
        what = "several keys" if found else "no key"
        raise NotFoundError(f"{wish.role} has {what} that begin with {wish.revoke!r}: {shown}")
    return found[0]


def _place(home: Path, role: str, ring: KeyRing, lost: str) -> Path:
    """Where a new key is made: beside the old one, where that lies in the folder, to take its place afterwards."""
    old = Path(ring.places.get(lost, ""))
    if old.parent in {home / "keys", offline_folder(home)}:
        return next_path(old)
    if role in ONLINE_ROLES:
        return next_path(key_path(home, role))
    return offline_folder(home) / f"{role}-for-{short(lost)}.pem"


def _request(proposal: Proposal, now_s: float) -> SigningRequest:
    """The same as a file that can travel."""
    base, files = proposal.base, dict(proposal.metadata)
    role = "root" if "root" in files else "targets"
    created_s = float(int(now_s))
    held = {"root": base.roots[-1], **base.roles}
    chain = chain_of(role, [root.content for root in base.roots], lambda name: held[name].content)
    return SigningRequest(
        role,
        files.pop(role),
        chain,
        created_s,
        created_s + LIFE_S,
        companions=files,
        bases={name: held[name].metadata for name in files},
    )


def _changed_versions(before: Generation, after: Generation) -> dict[str, int]:
    versions = {
        role: file.version
        for role, file in after.roles.items()
        if file.content != before.roles[role].content
    }
    if len(after.roots) > len(before.roots):
        versions["root"] = after.root.version
    return versions
