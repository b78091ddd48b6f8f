"""A new repository: keys, and the first version of every role.

Rules kept here: nothing that exists is overwritten; the timestamp is written last, so that a folder
with a timestamp is a whole repository.
"""

from collections.abc import Mapping, Sequence
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
from fleet.repository.claims import CLAIMS_FIELD, ClaimsRule
from fleet.repository.files import write_durable
from fleet.repository.keys import create_key, key_path, offline_folder, offline_key_path
from fleet.repository.roles import (
    SIMPLE_ROLES,
    TOP_ROLES,
    VALIDITY,
    RolePlan,
    expiry,
    file_name,
    to_bytes,
    validity_s,
)

__all__ = ["create_keys", "delegate", "init_repository", "metadata_folder", "sign_with"]

Keys = Mapping[str, Sequence[CryptoSigner]]
"""The keys of each role."""


def metadata_folder(home: Path) -> Path:
    """Where the signed metadata of a fleet folder is kept."""
    return home / "repository" / "metadata"


def init_repository(
    home: Path,
    *,
    fleet_name: str,
    now_s: float,
    plan: Sequence[RolePlan] = SIMPLE_ROLES,
    password: bytes | None = None,
    claims: ClaimsRule | None = None,
) -> bytes:
    """Make ``keys/`` and ``repository/metadata/`` in a fleet folder.

    Args:
        home: the fleet folder; made when missing.
        fleet_name: name of the fleet, kept in the root.
        now_s: the time to sign at, in seconds since the epoch.
        plan: the roles, in their order of trust.
        password: encrypts the offline keys; None leaves them plain.
        claims: whether new bundles need an attestation, and whose; None states no rule.

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
    keys = {role.name: create_keys(home, role, password) for role in plan}
    files: dict[str, bytes] = {}
    _add(files, "root", _root(plan, keys, fleet_name, now_s), keys)
    _add(files, "targets", _targets(plan, keys, now_s, claims), keys)
    delegated = [role.name for role in plan if role.paths]
    for name in delegated:
        _add(files, name, Targets(expires=expiry(now_s, validity_s(name))), keys)
    meta = {f"{role}.json": _meta(files, role) for role in ("targets", *delegated)}
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


def create_keys(
    home: Path, role: RolePlan, password: bytes | None = None
) -> tuple[CryptoSigner, ...]:
    """Make and store the keys of one role: offline ones in a folder of their own.

    Raises:
        ConflictError: there is a key already. ServerError: one cannot be stored.
    """
    if not role.offline:
        return (create_key(key_path(home, role.name)),)
    try:
        offline_folder(home).mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ServerError(f"cannot make {offline_folder(home)}: {error.strerror}") from error
    paths = (offline_key_path(home, role.name, number + 1) for number in range(role.keys))
    return tuple(create_key(path, password) for path in paths)


def delegate(targets: Targets, role: RolePlan, keys: Sequence[CryptoSigner]) -> None:
    """Let a role speak for its paths, after every role that stands there already."""
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    targets.delegations.roles[role.name] = DelegatedRole(
        role.name, [], threshold=role.threshold, terminating=True, paths=list(role.paths)
    )
    for key in keys:
        targets.add_key(key.public_key, role.name)


def sign_with(signed: Signed, keys: Sequence[CryptoSigner]) -> bytes:
    """A metadata file with a signature of each key."""
    metadata: Metadata[Any] = Metadata(signed)
    for key in keys:
        metadata.sign(key, append=True)
    return to_bytes(metadata)


def _root(plan: Sequence[RolePlan], keys: Keys, fleet_name: str, now_s: float) -> Root:
    root = Root(
        expires=expiry(now_s, VALIDITY.root_s),
        consistent_snapshot=True,
        unrecognized_fields={FLEET_FIELD: fleet_name},
    )
    for role in plan:
        if role.name in TOP_ROLES:
            root.roles[role.name].threshold = role.threshold
            for key in keys[role.name]:
                root.add_key(key.public_key, role.name)
    return root


def _targets(
    plan: Sequence[RolePlan], keys: Keys, now_s: float, claims: ClaimsRule | None
) -> Targets:
    """The top role: it says who speaks for which path, and lists nothing itself."""
    targets = Targets(expires=expiry(now_s, VALIDITY.targets_s), delegations=Delegations({}, {}))
    for role in plan:
        if role.paths:
            delegate(targets, role, keys[role.name])
    if claims is not None:
        targets.unrecognized_fields[CLAIMS_FIELD] = claims.to_json()
    return targets


def _add(files: dict[str, bytes], role: str, signed: Signed, keys: Keys) -> None:
    files[file_name(role, signed.version)] = sign_with(signed, keys[role])


def _meta(files: Mapping[str, bytes], role: str) -> MetaFile:
    return MetaFile.from_data(1, files[file_name(role, 1)], ["sha256"])
