"""One complete state of the repository, as a value, read from its folder.

Rules kept here:

* A generation is what a device reaches from the timestamp: whatever else lies in the folder is not
part of it. * Reading follows versions, lengths and digests like a device does; a damaged folder is
named, not repaired.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp

from agent.trust.limits import TrustLimits
from agent.trust.pack import encode_pack
from fleet.errors import ConfigError, ServerError
from fleet.repository.roles import file_name, is_release_role

__all__ = [
    "Generation",
    "SignedFile",
    "delegated_roles",
    "pack_of",
    "read_generation",
    "role_for",
]


@dataclass(frozen=True, slots=True)
class SignedFile:
    """A metadata file: what it says and its bytes."""

    metadata: "Metadata[Any]"
    content: bytes

    @property
    def version(self) -> int:
        """Version of the metadata."""
        version: int = self.metadata.signed.version
        return version


@dataclass(frozen=True, slots=True)
class Generation:
    """Everything a device is told at one moment.

    Attributes:
        roots: every root in order, the first one first.
        timestamp, snapshot: the files of these roles.
        roles: the file of ``targets`` and of every role that it delegates to, in their order of trust.
    """

    roots: tuple[SignedFile, ...]
    timestamp: SignedFile
    snapshot: SignedFile
    roles: Mapping[str, SignedFile]

    @property
    def root(self) -> Root:
        """What the newest root says."""
        signed = self.roots[-1].metadata.signed
        assert isinstance(signed, Root)
        return signed

    @property
    def release_roles(self) -> tuple[str, ...]:
        """The roles that approve bundles."""
        return tuple(role for role in self.roles if is_release_role(role))

    def role_for(self, path: str) -> str | None:
        """The role that devices ask first for this path; None when nobody speaks for it."""
        return role_for(self.targets("targets"), path)

    @property
    def snapshot_signed(self) -> Snapshot:
        """What the snapshot says."""
        signed = self.snapshot.metadata.signed
        assert isinstance(signed, Snapshot)
        return signed

    def targets(self, role: str) -> Targets:
        """What ``targets`` or a role that it delegates to says."""
        signed = self.roles[role].metadata.signed
        assert isinstance(signed, Targets)
        return signed


def pack_of(generation: Generation, limits: TrustLimits) -> bytes:
    """The retained message: timestamp, snapshot, directives and every root but the first, gzip.

    Roots that do not fit are left out, the oldest first: a device that far behind asks the server.
    """
    rollout = generation.roles["rollout"]
    files = {
        file_name("timestamp", generation.timestamp.version): generation.timestamp.content,
        file_name("snapshot", generation.snapshot.version): generation.snapshot.content,
        file_name("rollout", rollout.version): rollout.content,
    }
    roots = {file_name("root", root.version): root.content for root in generation.roots[1:]}
    while roots:
        pack = encode_pack(files | roots)
        if len(pack) <= limits.pack_bytes and len(files | roots) <= limits.pack_files:
            return pack
        del roots[next(iter(roots))]
    return encode_pack(files)


def read_generation(folder: Path) -> Generation:
    """The current generation in a metadata folder.

    Raises:
        ConfigError: there is no repository in the folder.
        ServerError: a file is missing, unreadable or not the one that the others name.
    """
    if not (folder / "timestamp.json").is_file():
        raise ConfigError(f"there is no repository in {folder}; make one with `fleet init`")
    roots = [_read(folder, "root", 1, Root)]
    while (folder / file_name("root", len(roots) + 1)).is_file():
        roots.append(_read(folder, "root", len(roots) + 1, Root))
    timestamp = _read(folder, "timestamp", 0, Timestamp)
    assert isinstance(timestamp.metadata.signed, Timestamp)
    snapshot = _read_named(folder, "snapshot", timestamp.metadata.signed.snapshot_meta, Snapshot)
    assert isinstance(snapshot.metadata.signed, Snapshot)
    roles = {"targets": _read_role(folder, "targets", snapshot.metadata.signed)}
    top = roles["targets"].metadata.signed
    assert isinstance(top, Targets)
    for role in delegated_roles(top):
        roles[role] = _read_role(folder, role, snapshot.metadata.signed)
    return Generation(tuple(roots), timestamp, snapshot, roles)


def delegated_roles(targets: Targets) -> tuple[str, ...]:
    """The roles that a targets role delegates to, in their order of trust."""
    return tuple((targets.delegations and targets.delegations.roles) or ())


def role_for(targets: Targets, path: str) -> str | None:
    """The role that devices ask first for this path; None when nobody speaks for it."""
    if targets.delegations is None:
        return None
    found = next(iter(targets.delegations.get_roles_for_target(path)), None)
    return None if found is None else found[0]


def _read_role(folder: Path, role: str, snapshot: Snapshot) -> SignedFile:
    named = snapshot.meta.get(f"{role}.json")
    if named is None:
        raise ServerError(f"the snapshot in {folder} does not name {role}; restore a backup")
    return _read_named(folder, role, named, Targets)


def _read_named(folder: Path, role: str, named: MetaFile, kind: type[Signed]) -> SignedFile:
    file = _read(folder, role, named.version, kind)
    try:
        named.verify_length_and_hashes(file.content)
    except RepositoryError as error:
        name = file_name(role, named.version)
        raise ServerError(
            f"{folder / name} is not the file that was signed: {error}. Restore a backup"
        ) from error
    return file


def _read(folder: Path, role: str, version: int, kind: type[Signed]) -> SignedFile:
    path = folder / file_name(role, version)
    try:
        content = path.read_bytes()
        metadata: Metadata[Any] = Metadata.from_bytes(content)
    except OSError as error:
        raise ServerError(f"cannot read {path}: {error.strerror or error}") from error
    except RepositoryError as error:
        raise ServerError(f"{path} is damaged: {error}. Restore a backup") from error
    if not isinstance(metadata.signed, kind):
        raise ServerError(f"{path} does not hold the role {role}. Restore a backup")
    return SignedFile(metadata, content)
