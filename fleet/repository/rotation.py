"""New keys for a role: the next root and the next targets, as functions of values.

Rules kept here:

* The next version differs from the present one in the keys asked for, its number and its expiry,
  and in nothing else. It comes unsigned: who signs it, and where, is somebody else's matter.
* A role keeps at least as many keys as its threshold, and every role has keys of its own.
* A key that was taken away from the root is not taken again.
* A new root counts when the old root's keys and its own have signed it, each to their threshold.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root, Targets

from fleet.errors import NotFoundError, RefusedError
from fleet.repository.roles import TOP_ROLES, VALIDITY, expiry, validity_s

__all__ = [
    "KeyChange",
    "Lack",
    "lacks_of_role",
    "lacks_of_root",
    "next_role",
    "next_root",
    "next_targets",
    "retired_keys",
    "short",
]

_SHOWN: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """Keys that a role gets and loses.

    Attributes:
        role: whose keys change.
        add: public keys that the role gets.
        revoke: ids of keys that it loses.
    """

    role: str
    add: tuple[Key, ...] = ()
    revoke: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """Signatures that a file does not have yet.

    Attributes:
        role: the file's role.
        signed_for: whose keys have to sign: "the present root", "the next root" or "targets".
        missing: how many signatures are still needed.
        key_ids: the keys that have not signed, any of which will do.
    """

    role: str
    signed_for: str
    missing: int
    key_ids: tuple[str, ...]

    def __str__(self) -> str:
        keys = ", ".join(short(key_id) for key_id in self.key_ids)
        plural = "s" if self.missing > 1 else ""
        return f"{self.role}: {self.missing} signature{plural} more by keys of {self.signed_for} ({keys})"


def next_root(
    current: Root,
    changes: Iterable[KeyChange],
    now_s: float,
    retired: frozenset[str] = frozenset(),
) -> "Metadata[Root]":
    """The root after ``current`` with the keys of some top-level roles changed; unsigned.

    Args:
        current: the newest root.
        changes: new and revoked keys; an empty list renews the root.
        now_s: the time of signing, in seconds since the epoch.
        retired: ids of keys that an earlier root had, see :func:`retired_keys`.

    Raises:
        NotFoundError: the root has no such role, or the role no such key.
        RefusedError: a rule of this module is broken; the message says which.
    """
    following = copy.deepcopy(current)
    for change in changes:
        if change.role not in TOP_ROLES:
            raise NotFoundError(f"the root names no keys for {change.role}; targets does")
        for key in change.add:
            if key.keyid in retired:
                raise RefusedError(
                    f"key {short(key.keyid)} was taken away by an earlier root and is not taken "
                    "again: make a new one"
                )
        _apply(following, following.keys, change)
    following.version = current.version + 1
    following.expires = expiry(now_s, VALIDITY.root_s)
    return Metadata(following)


def next_targets(
    current: Targets, changes: Iterable[KeyChange], now_s: float
) -> "Metadata[Targets]":
    """The top role after ``current`` with the keys of some delegated roles changed; unsigned.

    Args:
        current: the newest targets.
        changes: new and revoked keys; an empty list renews it.
        now_s: the time of signing, in seconds since the epoch.

    Raises:
        NotFoundError: nothing is delegated to such a role, or the role has no such key.
        RefusedError: a rule of this module is broken; the message says which.
    """
    following = copy.deepcopy(current)
    for change in changes:
        if following.delegations is None or change.role not in (following.delegations.roles or {}):
            raise NotFoundError(
                f"this fleet has no role {change.role}: `fleet key show` lists them"
            )
        _apply(following, following.delegations.keys, change)
    following.version = current.version + 1
    following.expires = expiry(now_s, VALIDITY.targets_s)
    return Metadata(following)


def next_role(current: Targets, role: str, now_s: float) -> "Metadata[Targets]":
    """What ``current`` says, once more under the next number, for other keys to sign; unsigned."""
    following = copy.deepcopy(current)
    following.version = current.version + 1
    following.expires = expiry(now_s, validity_s(role))
    return Metadata(following)


def retired_keys(roots: Sequence[Root]) -> frozenset[str]:
    """Ids of the keys that some root had and the newest one, the last, has not."""
    named = {key_id for root in roots for key_id in root.keys}
    return frozenset(named - set(roots[-1].keys))


def lacks_of_root(current: Root, following: "Metadata[Root]") -> tuple[Lack, ...]:
    """The signatures that the next root does not have yet; none when it counts."""
    done = following.signed.get_root_verification_result(
        current, following.signed_bytes, following.signatures
    )
    sides = (("the present root", done.first), ("the next root", done.second))
    return tuple(
        Lack(
            role="root",
            signed_for=whose,
            missing=side.missing,
            key_ids=tuple(sorted(side.unsigned)),
        )
        for whose, side in sides
        if side.missing
    )


def lacks_of_role(
    delegator: Root | Targets, role: str, metadata: "Metadata[Any]"
) -> tuple[Lack, ...]:
    """The signatures that a role's file does not have yet by the keys its delegator names."""
    done = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    if not done.missing:
        return ()
    ids = tuple(sorted(done.unsigned))
    return (Lack(role=role, signed_for=role, missing=done.missing, key_ids=ids),)


def short(key_id: str) -> str:
    """A key id as people are shown it."""
    return key_id[:_SHOWN]


def _apply(delegator: Root | Targets, keys: dict[str, Key], change: KeyChange) -> None:
    role = delegator.get_delegated_role(change.role)
    for key_id in sorted(change.revoke):
        if key_id not in role.keyids:
            raise NotFoundError(
                f"{change.role} has no key {short(key_id)}; it has "
                f"{', '.join(short(known) for known in role.keyids)}"
            )
        delegator.revoke_key(key_id, change.role)
    for key in change.add:
        if key.keyid in keys:
            raise RefusedError(
                f"key {short(key.keyid)} speaks for a role of this fleet already; every role has keys of "
                "its own: make a new one"
            )
        delegator.add_key(key, change.role)
    if len(role.keyids) < role.threshold:
        raise RefusedError(
            f"{change.role} needs {role.threshold} signatures and would have {len(role.keyids)} keys: "
            "give it a new key for the one that it loses"
        )
