"""A new repository: keys, and the first version of every role.

Rules kept here: nothing that exists is overwritten; the timestamp is written last, so that a folder
with a timestamp is a whole repository.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    Targets,
    Timestamp,
)

from agent.trust.reading import FLEET_FIELD
from agent.trust.refresh import SIGNED_AT_FIELD
from fleet.errors import ConflictError, ServerError
from fleet.repository.files import write_durable
from fleet.repository.keys import create_key, key_path
from fleet.repository.roles import KEY_ROLES, VALIDITY, expiry, file_name, to_bytes

__all__ = ["init_repository", "metadata_folder"]


def metadata_folder(home: Path) -> Path:
    """Where the signed metadata of a fleet folder is kept."""
    return home / "repository" / "metadata"


def init_repository(home: Path, *, fleet_name: str, now_s: float) -> bytes:
    """Make ``keys/`` and ``repository/metadata/`` in a fleet folder.

    Args:
        home: the fleet folder; made when missing.
        fleet_name: name of the fleet, kept in the root.
        now_s: the time to sign at, in seconds since the epoch.

    Returns:
        The first root: what every device is given as its root of trust.

    Raises:
        ConflictError: there is a repository or a key already.
        ServerError: the folder cannot be written.
    """
    folder = metadata_folder(home)
    if (folder / "timestamp.json").exists():
        raise ConflictError(f"{home} holds a repository already; choose another folder")
    try:
        (home / "keys").mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServerError(f"cannot make {home}: {error.strerror or error}") from error
    keys = {role: create_key(key_path(home, role)) for role in KEY_ROLES}
    files: dict[str, bytes] = {}
    root = _root(keys, fleet_name, now_s)
    _add(files, "root", root, keys)
    for role, signed in (
        ("targets", _targets(keys, now_s)),
        ("release", Targets(expires=expiry(now_s, VALIDITY.release_s))),
        ("rollout", Targets(expires=expiry(now_s, VALIDITY.rollout_s))),
    ):
        _add(files, role, signed, keys)
    meta = {f"{role}.json": _meta(files, role) for role in ("targets", "release", "rollout")}
    snapshot = Snapshot(expires=expiry(now_s, VALIDITY.snapshot_s), meta=meta)
    _add(files, "snapshot", snapshot, keys)
    timestamp = Timestamp(
        expires=expiry(now_s, VALIDITY.timestamp_s),
        snapshot_meta=_meta(files, "snapshot"),
        unrecognized_fields={SIGNED_AT_FIELD: int(now_s)},
    )
    _add(files, "timestamp", timestamp, keys)
    for name, content in files.items():
        write_durable(folder / name, content)
    return files["1.root.json"]


def _root(keys: Mapping[str, CryptoSigner], fleet_name: str, now_s: float) -> Root:
    root = Root(
        expires=expiry(now_s, VALIDITY.root_s),
        consistent_snapshot=True,
        unrecognized_fields={FLEET_FIELD: fleet_name},
    )
    for role in ("root", "targets", "snapshot", "timestamp"):
        root.add_key(keys[role].public_key, role)
    return root


def _targets(keys: Mapping[str, CryptoSigner], now_s: float) -> Targets:
    """The top role: it says who speaks for which path, and lists nothing itself."""
    paths = {"release": ["bundles/*/*"], "rollout": ["rollouts/*"]}
    roles = {
        role: DelegatedRole(role, [], threshold=1, terminating=True, paths=patterns)
        for role, patterns in paths.items()
    }
    targets = Targets(expires=expiry(now_s, VALIDITY.targets_s), delegations=Delegations({}, roles))
    for role in roles:
        targets.add_key(keys[role].public_key, role)
    return targets


def _add(
    files: dict[str, bytes], role: str, signed: Signed, keys: Mapping[str, CryptoSigner]
) -> None:
    metadata: Metadata[Any] = Metadata(signed)
    metadata.sign(keys[role])
    files[file_name(role, signed.version)] = to_bytes(metadata)


def _meta(files: Mapping[str, bytes], role: str) -> MetaFile:
    return MetaFile.from_data(1, files[file_name(role, 1)], ["sha256"])
