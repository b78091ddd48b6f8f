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
from typing import Final

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Targets, Timestamp

from fleet.errors import RefusedError, ServerError
from fleet.repository.acceptance import (
    check_delegations,
    check_paths,
    check_root,
    parse_role,
    require_fresh,
    require_next,
    require_signed,
)
from fleet.repository.files import write_durable
from fleet.repository.generation import Generation, SignedFile, delegated_roles
from fleet.repository.release import read_entries
from fleet.repository.roles import ONLINE_ROLES, file_name, is_release_role
from fleet.repository.rotation import lacks_of_role
from fleet.repository.rules import check_kept

__all__ = ["Adoption", "finish_adoption", "plan_adoption", "staged_timestamp"]

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


def plan_adoption(
    current: Generation,
    files: Mapping[str, bytes],
    now_s: float,
    removed: frozenset[str] = frozenset(),
) -> Adoption:
    """What the repository would hold with these files.

    Args:
        current: what it holds.
        files: the next version of ``root``, ``targets`` or roles that targets delegates to, by role.
            What is there already is left out.
        now_s: the time, in seconds since the epoch.
        removed: bundles that may vanish from a release role; any other missing path is refused.

    Raises:
        RefusedError: a file is not signed as it must be, has expired, is too large or breaks a rule of
            this module or of :mod:`fleet.repository.acceptance`; the message names the role.
        ConflictError: it is not the version after the present one.
    """
    held = {"root": current.roots[-1], **current.roles}
    fresh = {
        role: parse_role(role, content)
        for role, content in files.items()
        if role not in held or held[role].content != content
    }
    roots = current.roots
    if "root" in fresh:
        check_root(current.root, fresh["root"].metadata, now_s)
        roots = (*roots, fresh.pop("root"))
    for role, file in fresh.items():
        require_next(role, file.version, _known_version(current, role))
    known = {**current.roles, **fresh}
    require_signed(
        "targets", lacks_of_role(roots[-1].metadata.signed, "targets", known["targets"].metadata)
    )
    targets: Targets = known["targets"].metadata.signed
    if "targets" in fresh:
        check_delegations(current.targets("targets"), targets)
    due = _check_delegated(targets, known, fresh)
    for role, file in fresh.items():
        require_fresh(role, file.metadata.signed, now_s)
    _check_entries(current, targets, known, fresh, removed)
    roles = {role: known[role] for role in ("targets", *delegated_roles(targets))}
    generation = replace(current, roots=roots, roles=roles)
    return Adoption(generation, fresh, due, len(roots) > len(current.roots))


def _known_version(current: Generation, role: str) -> int:
    """The newest version of a role that devices may have seen; 0 for none."""
    named = current.snapshot_signed.meta.get(f"{role}.json")
    return 0 if named is None else named.version


def _check_delegated(
    targets: Targets, known: Mapping[str, SignedFile], fresh: Mapping[str, SignedFile]
) -> tuple[str, ...]:
    """Check each delegated role's file; the ones that the server has to sign again."""
    delegated = delegated_roles(targets)
    unknown = sorted(set(fresh) - {"targets", *delegated})
    if unknown:
        raise RefusedError(f"this fleet has no role {', '.join(unknown)[:80]}")
    due = []
    for role in delegated:
        if role not in known:
            raise RefusedError(
                f"targets names the new role {role}, and nothing that its keys have signed came with it: "
                "send its first version along"
            )
        lacks = lacks_of_role(targets, role, known[role].metadata)
        if role not in ONLINE_ROLES:
            require_signed(role, lacks)
        elif role in fresh:
            raise RefusedError(f"{role} is signed by `fleet serve` alone and cannot be handed in")
        elif lacks:
            due.append(role)
    return tuple(due)


def _check_entries(
    current: Generation,
    targets: Targets,
    known: Mapping[str, SignedFile],
    fresh: Mapping[str, SignedFile],
    removed: frozenset[str],
) -> None:
    """Each role speaks for its own paths; a release role keeps what is published, in words that devices know."""
    for role in delegated_roles(targets):
        signed: Targets = known[role].metadata.signed
        if role in fresh and is_release_role(role):
            read_entries(signed)
        if role in fresh or "targets" in fresh:
            check_paths(targets, role, signed)
        if role in fresh and is_release_role(role) and role in current.roles:
            check_kept(current.targets(role), signed, removed)


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
