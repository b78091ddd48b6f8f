"""The signed repository on disk: what devices are told, and the only place that signs it.

Rules kept here:

* The timestamp is the commit: it is written last, and what it does not lead to does not exist. A
crash between two
  files leaves files that nothing names; the next change overwrites them.
* The server holds the keys of rollout, snapshot and timestamp only. Releases arrive signed and are
checked like a
  device would check them, and more strictly: none that was published may vanish or change by
  accident.
* Signing the same directives again changes nothing, so that reconciling is cheap and harmless.
* What devices would refuse, for its size or its signature, is refused here first.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp

from agent.trust import BundleRelease, Directive
from agent.trust.pack import METADATA_NAME
from agent.trust.refresh import SIGNED_AT_FIELD
from fleet.errors import ConfigError, ConflictError, RefusedError, ServerError
from fleet.repository.adoption import Adoption, finish_adoption, plan_adoption, staged_timestamp
from fleet.repository.create import metadata_folder
from fleet.repository.files import write_durable
from fleet.repository.generation import Generation, SignedFile, pack_of, read_generation
from fleet.repository.keyring import OnlineKeys
from fleet.repository.keys import key_path
from fleet.repository.release import parse_release_role, read_entries
from fleet.repository.roles import VALIDITY, expiry, file_name, needs_renewal, to_bytes
from fleet.repository.rules import (
    LIMITS,
    check_fits,
    check_kept,
    directive_targets,
    next_rollout,
    timestamp_validity_s,
)
from fleet.repository.signers import add_signature

__all__ = ["Repository"]

_VERSIONS_KEPT: Final = 50
"""Old versions of a role that are still served to a device in the middle of a refresh."""


class Repository:
    """An open repository; usable from any thread, one change at a time, by one process at a time.

    Args:
        home: the fleet folder that :func:`fleet.repository.init_repository` made.
        manifest: gives a manifest's bytes by its digest, None when there is none; by default the
        fleet folder's own
            artifacts are asked.
        online: where the keys of rollout, snapshot and timestamp lie; by default in ``keys/``.

    Raises:
        ConfigError: there is no repository in the folder.
        ServerError: there is one, and it is damaged.
    """

    def __init__(
        self,
        home: Path,
        manifest: Callable[[str], bytes | None] | None = None,
        online: OnlineKeys | None = None,
    ) -> None:
        self._home = home
        self._folder = metadata_folder(home)
        self._manifest = manifest or _artifacts_of(home)
        self._lock = threading.Lock()
        self._online = online or OnlineKeys()
        self._keys: dict[str, Signer] = {}
        finish_adoption(self._folder)
        self._generation = read_generation(self._folder)

    # --- what is signed ---------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Version of the timestamp: it goes up with every change."""
        return self._generation.timestamp.version

    @property
    def generation(self) -> Generation:
        """Everything that is signed now, as one value."""
        return self._generation

    def metadata(self, name: str) -> bytes | None:
        """A metadata file by the name it is served by; None when there is none.

        Raises:
            ServerError: it is there and cannot be read.
        """
        if not METADATA_NAME.fullmatch(name):
            return None
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ServerError(f"cannot read metadata {name}: {error.strerror or error}") from error

    def target(self, path: str, sha256: str) -> bytes | None:
        """The manifest of a released bundle; None unless exactly this is released."""
        release = self.releases().get(path)
        if release is None or release.sha256 != sha256:
            return None
        return self._manifest(sha256)

    def releases(self) -> dict[str, BundleRelease]:
        """Every released bundle by path."""
        return read_entries(self._generation.targets("release"))

    def release_metadata(self) -> tuple[bytes, int]:
        """The release role's file and version: what the releaser signs the next version of."""
        release = self._generation.roles["release"]
        return release.content, release.version

    def directives(self) -> tuple[Directive, ...]:
        """The signed directives, newest number first."""
        targets = self._generation.targets("rollout").targets
        found = [Directive.from_json(target.custom) for target in targets.values()]
        return tuple(sorted(found, key=lambda directive: (-directive.number, directive.id)))

    def pack(self) -> bytes:
        """The retained message: timestamp, snapshot, directives and every root but the first,
        gzip."""
        return pack_of(self._generation, LIMITS)

    def expiring(self, now_s: float, within_s: float) -> dict[str, float]:
        """Roles that the server cannot renew and that expire within ``within_s``: seconds left by
        role."""
        current = self._generation
        signed: dict[str, Signed] = {
            "root": current.root,
            "targets": current.targets("targets"),
            "release": current.targets("release"),
        }
        left = {role: entry.expires.timestamp() - now_s for role, entry in signed.items()}
        return {role: left_s for role, left_s in left.items() if left_s < within_s}

    # --- changes ----------------------------------------------------------------------------------

    def set_directives(self, directives: Iterable[Directive], now_s: float) -> bool:
        """Sign exactly these directives, unless they are what is signed already.

        Returns:
            Whether anything changed, so that the pack must be published.

        Raises:
            RefusedError: two share an id, one would not be understood, or they would not fit into a
            pack. ConfigError: a signing key cannot be used.
            ServerError: the disk failed.
        """
        targets = directive_targets(directives)
        with self._lock:
            current = self._generation.targets("rollout")
            if current.targets == targets:
                return False
            rollout = self._sign("rollout", next_rollout(current, targets, now_s), self._generation)
            self._commit({"rollout": rollout}, now_s)
            return True

    def publish(
        self, release_metadata: bytes, now_s: float, removed: frozenset[str] = frozenset()
    ) -> int:
        """Take over the next version of the release role, signed elsewhere.

        Publishing what is published already changes nothing.

        Args:
            release_metadata: the role's file.
            now_s: the time, in seconds since the epoch.
            removed: paths that may vanish; any other missing path is refused.

        Returns:
            The version that is published.

        Raises:
            RefusedError: it is not signed by the release key, has expired, is too large, changes or
            loses a
                published bundle, or holds an entry that devices would not understand.
            ConflictError: it is not the version after the current one.
            ConfigError: a signing key cannot be used.
            ServerError: the disk failed.
        """
        with self._lock:
            current = self._generation.roles["release"]
            if release_metadata == current.content:
                return current.version
            metadata = parse_release_role(release_metadata)
            self._check_release(metadata, len(release_metadata), now_s)
            if metadata.signed.version != current.version + 1:
                raise ConflictError(
                    f"the release metadata is version {metadata.signed.version}; the next is "
                    f"{current.version + 1}. Somebody else published in the meantime: publish again"
                )
            check_kept(self._generation.targets("release"), metadata.signed, removed)
            self._commit({"release": SignedFile(metadata, release_metadata)}, now_s)
            return metadata.signed.version

    def resign_if_due(self, now_s: float) -> bool:
        """Sign directives, snapshot and timestamp again once half of their validity is over.

        Returns:
            Whether anything changed, so that the pack must be published.

        Raises:
            ConfigError: a signing key cannot be used.
            ServerError: the disk failed.
        """
        with self._lock:
            current = self._generation
            rollout = current.targets("rollout")
            timestamp = current.timestamp.metadata.signed
            if needs_renewal(rollout, now_s, VALIDITY.rollout_s):
                renewed = next_rollout(rollout, rollout.targets, now_s)
                self._commit({"rollout": self._sign("rollout", renewed, current)}, now_s)
            elif needs_renewal(current.snapshot_signed, now_s, VALIDITY.snapshot_s):
                self._commit({}, now_s)
            elif needs_renewal(timestamp, now_s, timestamp_validity_s(rollout)):
                self._finish(current, {}, now_s)
            else:
                return False
            return True

    def adopt(self, files: Mapping[str, bytes], now_s: float) -> bool:
        """Take over new versions of root, targets and the roles they change, signed elsewhere.

        The roles whose keys the server has are signed again where theirs have changed.

        Args:
            files: metadata files by role, all that belong together.
            now_s: the time, in seconds since the epoch.

        Returns:
            Whether anything changed, so that the pack must be published.

        Raises:
            RefusedError: a file is not acceptable, or another has to come with it.
            ConflictError: a file is not the version after the present one.
            ConfigError: the new keys of an online role are not here; nothing was changed.
            ServerError: the disk failed.
        """
        with self._lock:
            adoption = plan_adoption(self._generation, files, now_s)
            if adoption.is_empty:
                return False
            changed = {**adoption.changed, **self._signed_again(adoption, now_s)}
            self._commit(changed, now_s, adoption.generation)
            return True

    def _signed_again(self, adoption: Adoption, now_s: float) -> dict[str, SignedFile]:
        within = adoption.generation
        again = {}
        for role in adoption.due:
            held = within.targets(role)
            again[role] = self._sign(role, next_rollout(held, held.targets, now_s), within)
        return again

    def _check_release(self, metadata: "Metadata[Targets]", size_bytes: int, now_s: float) -> None:
        if size_bytes > LIMITS.targets_bytes:
            raise RefusedError(
                f"the release metadata is {size_bytes} bytes, more than the "
                f"{LIMITS.targets_bytes} that devices "
                f"read; remove bundles that no device needs any more"
            )
        try:
            self._generation.targets("targets").verify_delegate(
                "release", metadata.signed_bytes, metadata.signatures
            )
        except RepositoryError as error:
            raise RefusedError(
                f"the release metadata is not signed by this fleet's release key: {error}"
            ) from error
        if metadata.signed.expires.timestamp() <= now_s:
            raise RefusedError("the release metadata has expired already; sign it again")
        read_entries(metadata.signed)

    # --- signing and writing ----------------------------------------------------------------------

    def _commit(
        self, changed: Mapping[str, SignedFile], now_s: float, planned: Generation | None = None
    ) -> None:
        """Write changed roles, a snapshot that names them and a timestamp that names it."""
        current = planned or self._generation
        meta = dict(current.snapshot_signed.meta)
        files = {}
        for role, file in changed.items():
            meta[f"{role}.json"] = MetaFile.from_data(file.version, file.content, ["sha256"])
            files[file_name(role, file.version)] = file.content
        version = current.snapshot.version + 1
        expires = expiry(now_s, VALIDITY.snapshot_s)
        snapshot = self._sign("snapshot", Snapshot(version, expires=expires, meta=meta), current)
        files[file_name("snapshot", version)] = snapshot.content
        roles = {**current.roles, **changed}
        self._finish(replace(current, snapshot=snapshot, roles=roles), files, now_s)

    def _finish(self, planned: Generation, files: Mapping[str, bytes], now_s: float) -> None:
        """Write the files and then the timestamp that makes them count."""
        timestamp = Timestamp(
            planned.timestamp.version + 1,
            expires=expiry(now_s, timestamp_validity_s(planned.targets("rollout"))),
            snapshot_meta=MetaFile.from_data(
                planned.snapshot.version, planned.snapshot.content, ["sha256"]
            ),
            unrecognized_fields={SIGNED_AT_FIELD: int(now_s)},
        )
        complete = replace(planned, timestamp=self._sign("timestamp", timestamp, planned))
        check_fits(complete)
        for name, content in files.items():
            write_durable(self._folder / name, content)
        if len(complete.roots) > len(self._generation.roots):
            self._write_root(complete)
        write_durable(self._folder / "timestamp.json", complete.timestamp.content)
        self._generation = complete
        self._prune(complete)

    def _write_root(self, complete: Generation) -> None:
        """From here on the new root counts, so what belongs to it must be there before it."""
        root = complete.roots[-1]
        staged = staged_timestamp(self._folder, root.version)
        write_durable(staged, complete.timestamp.content)
        write_durable(self._folder / file_name("root", root.version), root.content)

    def _sign(self, role: str, signed: Signed, within: Generation) -> SignedFile:
        delegator: Root | Targets = within.root if role != "rollout" else within.targets("targets")
        wanted = delegator.get_delegated_role(role).keyids
        if role not in self._keys or self._keys[role].public_key.keyid not in wanted:
            self._keys[role] = self._online.signer(self._home, role, wanted)
        metadata: Metadata[Any] = Metadata(signed)
        add_signature(metadata, self._keys[role], f"the {role} key")
        try:
            delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except RepositoryError as error:
            raise ConfigError(
                f"{key_path(self._home, role)} is not the {role} key of this fleet; put the right "
                "key there"
            ) from error
        return SignedFile(metadata, to_bytes(metadata))

    def _prune(self, current: Generation) -> None:
        """Remove versions that no refresh under way can still ask for; failing is harmless."""
        with contextlib.suppress(OSError):
            staged_timestamp(self._folder, current.root.version).unlink(missing_ok=True)
        newest = {"snapshot": current.snapshot.version}
        newest |= {role: file.version for role, file in current.roles.items()}
        for role, version in newest.items():
            with contextlib.suppress(OSError):
                (self._folder / file_name(role, version - _VERSIONS_KEPT)).unlink(missing_ok=True)


def _artifacts_of(home: Path) -> Callable[[str], bytes | None]:
    def manifest(sha256: str) -> bytes | None:
        from fleet.artifacts.folder import FolderArtifacts

        return FolderArtifacts(home / "artifacts").manifest(sha256)

    return manifest
