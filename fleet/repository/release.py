"""Approving a bundle: what the holder of the release key does, on whatever machine the key is on.

Rules kept here:

* A version is signed once: another manifest under the same path is refused, whoever asks.
* Release numbers count up for each class and model, so that devices can be kept from going below
one. * Signing works on bytes and a key file alone; it needs no server and no repository.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, TargetFile, Targets

from agent.bundle import Manifest, parse_manifest
from agent.trust import BundleRelease, bundle_path
from agent.trust.errors import MalformedError
from fleet.errors import ConflictError, RefusedError
from fleet.repository.keys import load_key
from fleet.repository.roles import VALIDITY, expiry, to_bytes

__all__ = [
    "ReleaseEntry",
    "next_release",
    "parse_release_role",
    "read_entries",
    "renew_release",
    "sign_release",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseEntry:
    """What the release role is to say of a bundle.

    Attributes:
        model, version, device_class: which bundle; together they make its path.
        hardware: machine architectures it runs on; empty for any.
        min_release: raise the floor of the model to this release number; 0 leaves it.
        limits: pairs of seconds since signing and basis points; empty for no limit.
        agent: PEP 440 specifier of agent versions; empty for any.
        onnxruntime: PEP 440 specifier of ONNX Runtime versions; empty for any.
        attestations: digests of what attests that the bundle passed its checks.
    """

    model: str
    version: str
    device_class: str
    hardware: tuple[str, ...] = ()
    min_release: int = 0
    limits: tuple[tuple[int, int], ...] = ()
    agent: str = ""
    onnxruntime: str = ""
    attestations: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The path of the bundle, ``bundles/CLASS/MODEL-VERSION``."""
        return bundle_path(self.device_class, self.model, self.version)

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        *,
        min_release: int = 0,
        limits: tuple[tuple[int, int], ...] = (),
        attestations: tuple[str, ...] = (),
    ) -> "ReleaseEntry":
        """The entry that a bundle's manifest asks for, with what only the releaser decides."""
        needs = manifest.requirements
        return cls(
            model=manifest.model,
            version=manifest.version,
            device_class=manifest.device_class,
            hardware=needs.hardware,
            min_release=min_release,
            limits=limits,
            agent=needs.agent,
            onnxruntime=needs.onnxruntime,
            attestations=attestations,
        )


def sign_release(
    current_release: bytes, key_path: Path, entry: ReleaseEntry, raw_manifest: bytes, now_s: float
) -> bytes:
    """The next version of the release role, with one bundle more.

    Asked again for a bundle that is in it already, it signs the same entries for longer.

    Args:
        current_release: the release role as the fleet manager serves it.
        key_path: file of the release key.
        entry: what to say of the bundle.
        raw_manifest: the bundle's ``manifest.json``.
        now_s: the time of signing, in seconds since the epoch.

    Raises:
        ManifestError: the manifest breaks a rule of the format.
        RefusedError: entry and manifest describe different bundles, or the role cannot be read.
        ConflictError: the path is signed already, for another manifest.
        ConfigError: the key cannot be read.
    """
    metadata = next_release(current_release, entry, raw_manifest, now_s)
    metadata.sign(load_key(key_path))
    return to_bytes(metadata)


def next_release(
    current_release: bytes, entry: ReleaseEntry, raw_manifest: bytes, now_s: float
) -> "Metadata[Targets]":
    """The next version of the release role, with one bundle more, signed by nobody yet.

    Asked again for a bundle that is in it already, it has the same entries for longer.

    Raises:
        ManifestError, RefusedError, ConflictError: as :func:`sign_release`.
    """
    manifest = parse_manifest(raw_manifest)
    described = bundle_path(manifest.device_class, manifest.model, manifest.version)
    if described != entry.path:
        raise RefusedError(f"the manifest describes {described}, not {entry.path}; sign it as that")
    digest = hashlib.sha256(raw_manifest).hexdigest()

    def add(targets: Targets) -> None:
        present = targets.targets.get(entry.path)
        if present is not None:
            if present.hashes.get("sha256") != digest:
                raise ConflictError(
                    f"{entry.path} is published already with another content; give the bundle a "
                    "new version"
                )
            return
        release = _next_release(targets, entry, digest, len(raw_manifest), int(now_s))
        targets.targets[entry.path] = TargetFile(
            release.length, {"sha256": digest}, entry.path, {"custom": release.to_json()}
        )

    return _next(current_release, now_s, add)


def renew_release(current_release: bytes, key_path: Path, now_s: float) -> bytes:
    """The same release role, signed for longer.

    Raises:
        RefusedError: the role cannot be read. ConfigError: the key cannot be read.
    """
    metadata = _next(current_release, now_s, lambda _targets: None)
    metadata.sign(load_key(key_path))
    return to_bytes(metadata)


def parse_release_role(raw: bytes) -> "Metadata[Targets]":
    """Release metadata, its form checked and nothing verified.

    Raises:
        RefusedError: it is not metadata of a targets role without delegations.
    """
    try:
        metadata: Metadata[Targets] = Metadata.from_bytes(raw)
    except RepositoryError as error:
        raise RefusedError(f"the release metadata cannot be read: {error}") from error
    if not isinstance(metadata.signed, Targets) or metadata.signed.delegations is not None:
        raise RefusedError(
            "the release metadata is not a plain targets role; sign it with `fleet bundle publish`"
        )
    return metadata


def read_entries(targets: Targets) -> dict[str, BundleRelease]:
    """Every entry of a release role by path.

    Raises:
        RefusedError: an entry does not have the form that devices understand; the message names it.
    """
    try:
        return {
            path: BundleRelease.from_target(
                path, target.hashes.get("sha256"), target.length, target.custom
            )
            for path, target in targets.targets.items()
        }
    except MalformedError as error:
        raise RefusedError(f"devices would not understand the release metadata: {error}") from error


def _next_release(
    targets: Targets, entry: ReleaseEntry, sha256: str, length: int, now_s: int
) -> BundleRelease:
    numbers = [
        release.release
        for release in read_entries(targets).values()
        if (release.device_class, release.model) == (entry.device_class, entry.model)
    ]
    number = 1 + max(numbers, default=0)
    if entry.min_release > number:
        raise RefusedError(
            f"min_release {entry.min_release} is above the release number {number} that "
            f"{entry.path} gets; no device "
            f"could install it"
        )
    return BundleRelease(
        path=entry.path,
        sha256=sha256,
        length=length,
        model=entry.model,
        version=entry.version,
        device_class=entry.device_class,
        hardware=entry.hardware,
        release=number,
        min_release=entry.min_release,
        signed_at_s=now_s,
        limits=entry.limits,
        agent=entry.agent,
        onnxruntime=entry.onnxruntime,
        attestations=entry.attestations,
    )


def _next(current: bytes, now_s: float, change: Callable[[Targets], None]) -> "Metadata[Targets]":
    metadata = parse_release_role(current)
    change(metadata.signed)
    read_entries(metadata.signed)  # what devices would not understand is not signed
    metadata.signed.version += 1
    metadata.signed.expires = expiry(now_s, VALIDITY.release_s)
    metadata.signatures.clear()
    return metadata
