"""Publishing a bundle: from a manifest, a newly signed release role and pieces that are here, to
every device's metadata.

The same for every other role that people sign elsewhere: taken over once it is signed by enough keys.

Rules kept here: nothing is signed into the world that a device could not fetch whole; publishing
the same bundle again changes nothing, wherever the first attempt was interrupted; the server checks
the release role and never signs it.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from agent.bundle import Manifest, manifest_sha256, parse_manifest
from agent.bundle.errors import ManifestError
from agent.trust import BundleRelease, bundle_path
from fleet.api.attested import keep_attestations, new_releases
from fleet.artifacts.folder import FolderArtifacts
from fleet.errors import ConflictError, RefusedError
from fleet.operators.call import Call
from fleet.repository import Repository
from fleet.repository.release import parse_release_role, read_entries
from fleet.store.bundles import add_bundle, bundle_paths
from fleet.store.engine import Store

__all__ = [
    "Place",
    "Published",
    "RoleTaken",
    "publish_bundle",
    "restore_bundle_rows",
    "take_over_role",
]

_LOG = logging.getLogger(__name__)
_MISSING_SHOWN = 3


class Place(Protocol):
    """Where something is published: the running fleet manager's services, or a folder that stands still."""

    @property
    def repository(self) -> Repository: ...

    @property
    def artifacts(self) -> FolderArtifacts: ...

    @property
    def store(self) -> Store: ...

    @property
    def now_s(self) -> Callable[[], float]: ...


@dataclass(frozen=True, slots=True)
class RoleTaken:
    """``changed`` False: this version was published before."""

    role: str
    version: int
    changed: bool


@dataclass(frozen=True, slots=True)
class Published:
    """``changed``: metadata was signed, so the pack has to go out."""

    release: BundleRelease
    release_version: int
    changed: bool


def publish_bundle(
    services: Place,
    raw_manifest: bytes,
    release_role: bytes,
    call: Call,
    attestations: Iterable[bytes] = (),
) -> Published:
    """Check everything, take the release role over, note the bundle. Blocking.

    Raises:
        ForbiddenError: the caller may not change that model.
        BundleError: the manifest breaks a rule of the format.
        RefusedError: pieces or an attestation are missing, or the release role or an attestation is not acceptable.
        ConflictError: the path is published with another content, or somebody published in between.
    """
    manifest = parse_manifest(raw_manifest)
    digest = manifest_sha256(raw_manifest)
    path = bundle_path(manifest.device_class, manifest.model, manifest.version)
    call.object = path
    call.caller.require_scope(manifest.model, manifest.device_class)
    _require_pieces(services, manifest, path)
    signed = services.repository.releases().get(path)
    if signed is not None and signed.sha256 != digest:
        raise ConflictError(
            f"{path} is published already with another content: give the bundle a new version"
        )
    services.artifacts.put_manifest(raw_manifest)
    changed = signed is None
    if signed is None:
        signed = _announced(release_role, path, digest, len(raw_manifest))
        role = services.repository.release_role(path)
        keep_attestations(services, {role: release_role}, attestations)
        services.repository.publish(release_role, services.now_s(), role=role)
    with services.store.begin() as connection:
        add_bundle(connection, signed, manifest, services.now_s())
        call.record(connection, f"release {signed.release}" if changed else "was published before")
    _, version = services.repository.release_metadata(manifest.device_class)
    return Published(signed, version, changed)


def take_over_role(
    services: Place,
    role: str,
    raw: bytes,
    companions: Mapping[str, bytes],
    manifests: Iterable[bytes],
    attestations: Iterable[bytes] = (),
) -> RoleTaken:
    """Take over the next version of a role that people have signed. Blocking. Repeating it changes nothing.

    Args:
        services: where.
        role: root, targets, a release role or emergency.
        raw: its file.
        companions: files of other roles that come with it.
        manifests: of the bundles that are new in a release role.
        attestations: of the checks of those bundles.

    Raises:
        BundleError: a manifest breaks a rule of the format.
        RefusedError: it is not acceptable, or a piece, the manifest or an attestation of a new bundle is missing.
        ConflictError: it is not the version after the current one.
        RequestError: there is no such role.
    """
    before = services.repository.role_metadata(role)
    files = {**companions, role: raw}
    keep_attestations(services, files, attestations)
    _bring_manifests(services, files, manifests)
    version = services.repository.accept(role, raw, services.now_s(), companions=companions)
    restore_bundle_rows(services)
    return RoleTaken(role, version, before != raw)


def _bring_manifests(
    services: Place, files: Mapping[str, bytes], manifests: Iterable[bytes]
) -> None:
    """Keep the manifests of bundles that are new in a release role, once all their pieces are here."""
    offered = {manifest_sha256(raw): raw for raw in manifests}
    for release in new_releases(services.repository, files):
        path = release.path
        raw = offered.get(release.sha256) or services.artifacts.manifest(release.sha256)
        if raw is None:
            raise RefusedError(
                f"{path} cannot be published: its manifest is not here. Make the request anew with "
                "`fleet bundle publish`"
            )
        _require_pieces(services, parse_manifest(raw), path)
        services.artifacts.put_manifest(raw)


def restore_bundle_rows(services: Place) -> int:
    """Note every released bundle that the table does not know (a crash after signing); how many."""
    with services.store.read() as connection:
        known = bundle_paths(connection)
    restored = 0
    for path, release in services.repository.releases().items():
        raw = None if path in known else services.artifacts.manifest(release.sha256)
        if raw is None:
            continue
        try:
            manifest = parse_manifest(raw)
        except ManifestError as error:
            _LOG.error("the manifest of %s in the artifacts is not readable: %s", path, error)
            continue
        with services.store.begin() as connection:
            restored += add_bundle(connection, release, manifest, services.now_s())
    return restored


def _require_pieces(services: Place, manifest: Manifest, path: str) -> None:
    pieces = [piece.sha256 for piece in manifest.pieces()]
    missing = services.artifacts.missing(pieces)
    if missing:
        shown = ", ".join(digest[:12] for digest in missing[:_MISSING_SHOWN])
        raise RefusedError(
            f"{path} cannot be published: {len(missing)} of its {len(pieces)} pieces are not here "
            f"({shown}, ...). Upload them first; `fleet bundle publish` does"
        )


def _announced(release_role: bytes, path: str, digest: str, length: int) -> BundleRelease:
    entries = read_entries(parse_release_role(release_role).signed)
    release = entries.get(path)
    if release is None:
        raise RefusedError(f"the signed release metadata does not name {path}")
    if release.sha256 != digest or release.length != length:
        raise RefusedError(
            f"the signed release metadata names another manifest for {path}: it has "
            f"{release.sha256[:12]}, this is {digest[:12]}"
        )
    return release
