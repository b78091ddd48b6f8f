"""Every role at a glance: its keys and where they are, how many must sign, how long it holds, and who is to act.

Rules kept here: values in, values out; a private key counts as here when its file lies in the fleet folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuf.api.metadata import Key, Signed

from fleet.repository.generation import Generation
from fleet.repository.keys import KeyFile, key_name
from fleet.repository.roles import EMERGENCY, ONLINE_ROLES, TOP_ROLES, notice_s

__all__ = ["KeyView", "RoleView", "overview"]

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class KeyView:
    """One key of a role.

    Attributes:
        name, keyid: what people call it, and its id.
        path: its private half in the fleet folder; None where it is not here.
        note: ``encrypted``, or nothing.
    """

    name: str
    keyid: str
    path: Path | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class RoleView:
    """One role.

    Attributes:
        role, version: which, and its published version.
        threshold: how many keys must sign.
        keys: all that may.
        expires_s: until when it holds, in seconds since the epoch.
        days_left: until then; below zero once it has expired.
        is_online: the server signs it itself.
        is_due: it is to be signed again now.
    """

    role: str
    version: int
    threshold: int
    keys: tuple[KeyView, ...]
    expires_s: float
    days_left: float
    is_online: bool
    is_due: bool

    @property
    def to_do(self) -> str:
        """What people have to do about it; empty for nothing."""
        if not self.is_due:
            return ""
        if self.is_online:
            return "expired: start `fleet serve`, which signs it"
        late = "EXPIRED" if self.days_left <= 0 else "expires soon"
        return f"{late}: `fleet key request {self.role}`, and have it signed"


def overview(
    generation: Generation, files: Sequence[KeyFile], now_s: float
) -> tuple[RoleView, ...]:
    """Every role, the most trusted first.

    Args:
        generation: what is published.
        files: the private keys in the fleet folder.
        now_s: the time, in seconds since the epoch.
    """
    order = ("root", *generation.roles, "snapshot", "timestamp")
    return tuple(_view(generation, role, files, now_s) for role in order)


def _view(generation: Generation, role: str, files: Sequence[KeyFile], now_s: float) -> RoleView:
    top = generation.targets("targets")
    delegator = generation.root if role in TOP_ROLES else top
    delegated = delegator.get_delegated_role(role)
    known: Mapping[str, Key] = generation.root.keys
    if role not in TOP_ROLES:
        assert top.delegations is not None
        known = top.delegations.keys
    keys = tuple(_key(known[keyid], files) for keyid in delegated.keyids if keyid in known)
    left_s = _signed(generation, role).expires.timestamp() - now_s
    is_online = role in ONLINE_ROLES or (
        role == EMERGENCY and any(file.path.name == f"{EMERGENCY}.pem" for file in files)
    )
    return RoleView(
        role=role,
        version=_signed(generation, role).version,
        threshold=delegated.threshold,
        keys=keys,
        expires_s=now_s + left_s,
        days_left=left_s / DAY_S,
        is_online=is_online,
        is_due=left_s <= 0 if is_online else left_s < notice_s(role),
    )


def _signed(generation: Generation, role: str) -> Signed:
    if role == "root":
        return generation.root
    files = {"snapshot": generation.snapshot, "timestamp": generation.timestamp}
    signed: Signed = {**generation.roles, **files}[role].metadata.signed
    return signed


def _key(key: Key, files: Sequence[KeyFile]) -> KeyView:
    name = key_name(key)
    for file in files:
        if file.keyid == key.keyid or (file.note == "encrypted" and file.path.stem == name):
            return KeyView(name, key.keyid, file.path, file.note)
    return KeyView(name, key.keyid, None)
