"""The signed repository on disk: what devices are told, and the only place that signs it.

Rules kept here:

* The timestamp is the commit: it is written last, and what it does not lead to does not exist. A crash between two
  files leaves files that nothing names; the next change overwrites them. Only a new root counts before its timestamp
  does, see :mod:`fleet.repository.adoption`.
* The server holds the keys of rollout, snapshot and timestamp only. What people sign arrives signed and is
  checked like a device would check it, and more strictly: no bundle that was published may vanish or change by
  accident.
* Signing the same directives again changes nothing, so that reconciling is cheap and harmless.
* What devices would refuse, for its size or its signature, is refused here first.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tuf.api.metadata import MetaFile, Signed, Snapshot, Targets, Timestamp

from agent.trust import BundleRelease, Directive, bundle_path
from agent.trust.pack import METADATA_NAME
from agent.trust.refresh import SIGNED_AT_FIELD
from fleet.errors import NotFoundError, ServerError
from fleet.home import Home
from fleet.repository.acceptance import require_role
from fleet.repository.adoption import finish_adoption, plan_adoption, staged_timestamp
from fleet.repository.create import metadata_folder
from fleet.repository.emergency import lifted_at
from fleet.repository.files import write_durable
from fleet.repository.generation import Generation, SignedFile, pack_of, read_generation
from fleet.repository.keyring import OnlineKeys
from fleet.repository.keys import offline_folder
from fleet.repository.online import ServerSigner
from fleet.repository.release import read_entries
from fleet.repository.roles import (
    EMERGENCY,
    SIMPLE_RELEASE,
    VALIDITY,
    expiry,
    file_name,
    is_release_role,
    needs_renewal,
)
from fleet.repository.rules import (
    LIMITS,
    check_fits,
    directive_targets,
    next_rollout,
    timestamp_validity_s,
)

__all__ = ["Repository"]

_NOTHING: Final[Mapping[str, bytes]] = MappingProxyType({})
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
        self._keys = ServerSigner(home, online or OnlineKeys())
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

    def releases(self, now_s: float | None = None) -> dict[str, BundleRelease]:
        """Every released bundle by path, of every class.

        Args:
            now_s: as devices take them then: without the speed limits that the emergency role lifts. None: as signed.
        """
        lifted: frozenset[str] = frozenset()
        if now_s is not None and EMERGENCY in self._generation.roles:
            lifted = lifted_at(self._generation.targets(EMERGENCY), now_s)
        return {
            path: replace(release, limits=()) if release.sha256 in lifted else release
            for role in self._generation.release_roles
            for path, release in read_entries(self._generation.targets(role)).items()
            if self._generation.role_for(path) == role
        }

    def release_metadata(self, device_class: str = "") -> tuple[bytes, int]:
        """A release role's file and version: what the releaser signs the next version of.

        Args:
            device_class: the class whose bundles it approves; empty where one role approves every class.

        Raises:
            NotFoundError: no role approves bundles of that class.
        """
        role = self.release_role(bundle_path(device_class or "-", "-", "-"))
        file = self._generation.roles[role]
        return file.content, file.version

    def release_role(self, path: str) -> str:
        """The role that approves the bundle at this path.

        Raises:
            NotFoundError: none does.
        """
        role = self._generation.role_for(path)
        if role is None or not is_release_role(role):
            known = ", ".join(self._generation.release_roles) or "none"
            raise NotFoundError(
                f"no release role speaks for {path[:200]} (there are: {known}); "
                "`fleet key add-class CLASS` makes one for a device class"
            )
        return role

    def roles(self) -> dict[str, int]:
        """Version of every role but the timestamp, by name, the root first."""
        current = self._generation
        found = {"root": current.root.version}
        found |= {role: file.version for role, file in current.roles.items()}
        return found | {"snapshot": current.snapshot.version}

    def role_metadata(self, role: str) -> bytes:
        """The newest file of a role that people sign.

        Raises:
            RequestError: there is no such role.
        """
        return require_role(self._generation, role).content

    def roots(self) -> tuple[bytes, ...]:
        """Every root, the first one first."""
        return tuple(root.content for root in self._generation.roots)

    def offline_keys(self) -> tuple[str, ...]:
        """Names of the offline keys that still lie in the fleet folder."""
        return tuple(path.name for path in sorted(offline_folder(self._home).glob("*.pem")))

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
        """Roles that the server does not renew and that expire within ``within_s``: seconds left by
        role."""
        current = self._generation
        signed: dict[str, Signed] = {"root": current.root}
        signed |= {role: current.targets(role) for role in current.roles if role != "rollout"}
        if self._renews_emergency():
            del signed[EMERGENCY]
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
            rollout = self._keys.sign(
                "rollout", next_rollout(current, targets, now_s), self._generation
            )
            self._commit({"rollout": rollout}, now_s)
            return True

    def publish(
        self,
        release_metadata: bytes,
        now_s: float,
        removed: frozenset[str] = frozenset(),
        role: str = SIMPLE_RELEASE,
    ) -> int:
        """Take over the next version of a release role, signed elsewhere; as :meth:`accept`.

        Args:
            release_metadata: the role's file.
            now_s: the time, in seconds since the epoch.
            removed: paths that may vanish; any other missing path is refused.
            role: which release role.
        """
        return self.accept(role, release_metadata, now_s, removed=removed)

    def accept(
        self,
        role: str,
        raw: bytes,
        now_s: float,
        *,
        companions: Mapping[str, bytes] = _NOTHING,
        removed: frozenset[str] = frozenset(),
    ) -> int:
        """Take over the next version of a role that people sign, and lead devices to it.

        Accepting what is published already changes nothing.

        Args:
            role: root, targets, a release role or emergency.
            raw: the role's file.
            now_s: the time, in seconds since the epoch.
            companions: with targets: files of delegated roles that are new, or whose keys it changes.
            removed: bundles that may vanish from a release role; any other missing path is refused.

        Returns:
            The version that is published.

        Raises:
            RequestError: there is no such role.
            RefusedError: it is not signed by enough of the role's keys, has expired, is too large, changes or
                loses a published bundle, or says what devices would not understand or would not ask this role.
            ConflictError: it is not the version after the current one.
            ConfigError: a signing key of the server cannot be used.
            ServerError: the disk failed.
        """
        with self._lock:
            require_role(self._generation, role)
            self._adopt({**companions, role: raw}, now_s, removed)
            return require_role(self._generation, role).version

    def adopt(self, files: Mapping[str, bytes], now_s: float) -> bool:
        """Take over new versions of root, targets and the roles they change; all together or none.

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
            return self._adopt(files, now_s, frozenset())

    def _adopt(self, files: Mapping[str, bytes], now_s: float, removed: frozenset[str]) -> bool:
        adoption = plan_adoption(self._generation, files, now_s, removed)
        if adoption.is_empty:
            return False
        within = adoption.generation
        again = {}
        for role in adoption.due:
            held = within.targets(role)
            following = next_rollout(held, held.targets, now_s)
            again[role] = self._keys.sign(role, following, within)
        self._commit({**adoption.changed, **again}, now_s, within)
        return True

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
                self._renew("rollout", next_rollout(rollout, rollout.targets, now_s), now_s)
            elif needs_renewal(current.snapshot_signed, now_s, VALIDITY.snapshot_s):
                self._commit({}, now_s)
            elif needs_renewal(timestamp, now_s, timestamp_validity_s(rollout)):
                self._finish(current, {}, now_s)
            elif self._renews_emergency() and needs_renewal(
                current.targets(EMERGENCY), now_s, VALIDITY.emergency_s
            ):
                following = current.targets(EMERGENCY).version + 1
                expires = expiry(now_s, VALIDITY.emergency_s)
                self._renew(EMERGENCY, Targets(following, expires=expires), now_s)
            else:
                return False
            return True

    # --- signing and writing ----------------------------------------------------------------------

    def _renews_emergency(self) -> bool:
        """Whether the server keeps an emergency role fresh that has nothing to say: its one key is here."""
        current = self._generation
        has_role = EMERGENCY in current.roles and self._keys.has(EMERGENCY)
        return has_role and not current.targets(EMERGENCY).targets

    def _renew(self, role: str, following: Targets, now_s: float) -> None:
        self._commit({role: self._keys.sign(role, following, self._generation)}, now_s)

    def _commit(
        self,
        changed: Mapping[str, SignedFile],
        now_s: float,
        planned: Generation | None = None,
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
        snapshot = self._keys.sign(
            "snapshot", Snapshot(version, expires=expires, meta=meta), current
        )
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
        complete = replace(planned, timestamp=self._keys.sign("timestamp", timestamp, planned))
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
        # A device that is new begins at the newest root: an old one may have been signed by stolen keys.
        write_durable(Home(self._home).root, root.content)

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
