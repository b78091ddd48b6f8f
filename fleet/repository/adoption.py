"""Taking over metadata that was signed elsewhere: a new root, new targets, and what they change.

Rules kept here:

* What is handed in is checked as a device checks it, and counts as a whole or not at all.
* Afterwards every role is signed by keys that its delegator names: a file that its new keys have not
  signed has to be handed in together with them. The server signs its own roles again.
* No role that devices know vanishes, and no published bundle changes.
* With a new root the root is the commit: the timestamp that belongs to it lies beside, and is put in
  its place when the repository is opened after a crash.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets, Timestamp

from agent.trust.limits import TrustLimits
from agent.trust.reading import FLEET_FIELD
from fleet.errors import ConflictError, RefusedError, ServerError
from fleet.repository.files import write_durable
from fleet.repository.generation import Generation, SignedFile
from fleet.repository.release import read_entries
from fleet.repository.roles import file_name
from fleet.repository.rotation import Lack, lacks_of_role, lacks_of_root
from fleet.repository.rules import check_kept

__all__ = ["ONLINE_TARGETS", "Adoption", "finish_adoption", "plan_adoption", "staged_timestamp"]

ONLINE_TARGETS: Final = frozenset({"rollout"})
"""Delegated roles that the server signs itself."""

_LIMITS: Final = TrustLimits()
_STAGED: Final = "timestamp.of-root-"


@dataclass(frozen=True, slots=True)
class Adoption:
    """A state of the repository that is to be.

    Attributes:
        generation: the present one with what was handed in; snapshot and timestamp are the old ones.
        changed: the files of changed roles but root, by role.
        due: roles whose file the server has to sign again, because their keys changed.
        has_new_root: whether there is one root more.
    """

    generation: Generation
    changed: Mapping[str, SignedFile]
    due: tuple[str, ...]
    has_new_root: bool

    @property
    def is_empty(self) -> bool:
        """Whether all of it is there already."""
        return not (self.changed or self.due or self.has_new_root)


def plan_adoption(current: Generation, files: Mapping[str, bytes], now_s: float) -> Adoption:
    """What the repository would hold with these files.

    Args:
        current: what it holds.
        files: the next version of ``root``, ``targets`` or roles that targets delegates to, by role.
            What is there already is left out.
        now_s: the time, in seconds since the epoch.

    Raises:
        RefusedError: a file is not signed as it must be, has expired, is too large or breaks a rule of
            this module; the message names the role.
        ConflictError: it is not the version after the present one.
    """
    held = {"root": current.roots[-1], **current.roles}
    fresh = {
        role: content
        for role, content in files.items()
        if role not in held or held[role].content != content
    }
    roots = current.roots
    if "root" in fresh:
        roots = (*roots, _next_root(current, fresh.pop("root"), now_s))
    root = roots[-1].metadata.signed
    changed = {role: _read(role, content, now_s) for role, content in fresh.items()}
    roles = {**current.roles, **changed}
    _check_numbers(current, changed)
    _check_signed("targets", root, roles["targets"])
    targets = roles["targets"].metadata.signed
    due = _check_delegated(current, targets, roles, changed)
    for role, file in changed.items():
        if role != "targets":
            _check_entries(current, role, file)
    generation = replace(current, roots=roots, roles=roles)
    return Adoption(generation, changed, due, len(roots) > len(current.roots))


def _next_root(current: Generation, content: bytes, now_s: float) -> SignedFile:
    file = _parsed("root", content, Root, _LIMITS.root_bytes)
    root: Root = file.metadata.signed
    if root.version != current.root.version + 1:
        raise ConflictError(
            f"the root is version {root.version}; the next is {current.root.version + 1}. Make it "
            "again on top of the present one"
        )
    _refuse_lacks(lacks_of_root(current.root, file.metadata))
    _check_expiry("root", file, now_s)
    name, theirs = (one.unrecognized_fields.get(FLEET_FIELD) for one in (current.root, root))
    if name != theirs or not root.consistent_snapshot:
        raise RefusedError(
            f"the root is of fleet {theirs!r} and this is {name!r}, or it has no consistent snapshots: "
            "make it with `fleet key rotate`"
        )
    return file


def _read(role: str, content: bytes, now_s: float) -> SignedFile:
    file = _parsed(role, content, Targets, _LIMITS.targets_bytes)
    _check_expiry(role, file, now_s)
    return file


def _parsed(role: str, content: bytes, kind: type[Any], limit_bytes: int) -> SignedFile:
    if len(content) > limit_bytes:
        raise RefusedError(
            f"the {role} metadata is {len(content)} bytes, more than the {limit_bytes} that devices read"
        )
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(content)
    except RepositoryError as error:
        raise RefusedError(f"the {role} metadata cannot be read: {error}") from error
    if not isinstance(metadata.signed, kind):
        raise RefusedError(f"what was handed in as {role} is metadata of another kind")
    return SignedFile(metadata, content)


def _check_expiry(role: str, file: SignedFile, now_s: float) -> None:
    if file.metadata.signed.expires.timestamp() <= now_s:
        raise RefusedError(f"the {role} metadata has expired already; sign it again")


def _check_numbers(current: Generation, changed: Mapping[str, SignedFile]) -> None:
    for role, file in changed.items():
        following = current.roles[role].version + 1 if role in current.roles else 1
        if file.version != following:
            raise ConflictError(
                f"the {role} metadata is version {file.version}; the next is {following}. Somebody else "
                "changed it in the meantime: make it again on top of the present one"
            )


def _check_delegated(
    current: Generation,
    targets: Targets,
    roles: Mapping[str, SignedFile],
    changed: Mapping[str, SignedFile],
) -> tuple[str, ...]:
    """Check each delegated role's file; the ones that the server has to sign again."""
    delegated = list((targets.delegations.roles or {}) if targets.delegations else {})
    gone = sorted(set(current.roles) - {"targets", *delegated})
    if gone:
        raise RefusedError(
            f"the targets metadata no longer speaks of {', '.join(gone)}: devices would refuse to "
            "forget a role"
        )
    unknown = sorted(set(changed) - {"targets", *delegated})
    if unknown:
        raise RefusedError(f"this fleet has no role {', '.join(unknown)}")
    due = []
    for role in delegated:
        if role not in roles:
            raise RefusedError(f"the targets metadata names {role}: hand in its first file with it")
        lacks = lacks_of_role(targets, role, roles[role].metadata)
        if lacks and role in ONLINE_TARGETS and role not in changed:
            due.append(role)
        else:
            _refuse_lacks(lacks)
    return tuple(due)


def _check_signed(role: str, delegator: Root | Targets, file: SignedFile) -> None:
    _refuse_lacks(lacks_of_role(delegator, role, file.metadata))


def _refuse_lacks(lacks: tuple[Lack, ...]) -> None:
    if lacks:
        raise RefusedError(
            f"not signed by enough keys: {'; '.join(str(lack) for lack in lacks)}. Hand it in when they "
            "have signed"
        )


def _check_entries(current: Generation, role: str, file: SignedFile) -> None:
    """A role of bundles keeps what is published and says only what devices understand."""
    signed: Targets = file.metadata.signed
    if signed.delegations is not None:
        raise RefusedError(f"the {role} metadata delegates to others; devices do not follow that")
    if role in current.roles:
        check_kept(current.targets(role), signed, frozenset())
    if role.partition("-")[0] == "release":
        read_entries(signed)


# --- on disk --------------------------------------------------------------------------------------


def staged_timestamp(folder: Path, root_version: int) -> Path:
    """Where the timestamp lies that belongs to a root which is about to be written."""
    return folder / f"{_STAGED}{root_version}"


def finish_adoption(folder: Path) -> None:
    """After a crash: put the timestamp in its place that belongs to a root which has been written.

    Raises:
        ServerError: the folder cannot be read or written.
    """
    try:
        for staged in folder.glob(f"{_STAGED}*"):
            version = staged.name.removeprefix(_STAGED)
            if (folder / f"{version}.root.json").is_file():
                _put_if_newer(staged, folder / file_name("timestamp", 0))
            staged.unlink()
    except OSError as error:
        raise ServerError(f"cannot finish a change of keys in {folder}: {error}") from error


def _put_if_newer(staged: Path, place: Path) -> None:
    with contextlib.suppress(RepositoryError):  # a damaged file is not put anywhere
        content = staged.read_bytes()
        new: Metadata[Timestamp] = Metadata.from_bytes(content)
        old: Metadata[Timestamp] = Metadata.from_bytes(place.read_bytes())
        if new.signed.version > old.signed.version:
            write_durable(place, content)
