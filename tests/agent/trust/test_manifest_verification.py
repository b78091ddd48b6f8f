"""A manifest against its release: altered, mixed up or describing something else."""

from collections.abc import Callable
from hashlib import sha256

import pytest

from agent.bundle import ManifestError
from agent.trust import BundleRelease
from agent.trust.errors import ManifestMismatchError
from agent.trust.manifest import verify_manifest
from agent.trust.reading import releases
from tests.support.signed_fleet import OfferedFiles, Reader, SignedFleet, raw_manifest


def test_the_signed_manifest(fleet: SignedFleet) -> None:
    release = fleet.publish()
    raw = OfferedFiles(fleet.repository, {}).get_target(release.path, release.sha256)
    assert raw is not None
    assert verify_manifest(release, raw).model == "m"


@pytest.mark.parametrize(
    "change", [lambda raw: raw + b" ", lambda raw: raw[:-1], lambda raw: raw.replace(b"m", b"n")]
)
def test_altered(fleet: SignedFleet, change: Callable[[bytes], bytes]) -> None:
    release = fleet.publish()
    with pytest.raises(ManifestMismatchError, match="altered or mixed up"):
        verify_manifest(release, change(fleet.manifests[release.sha256]))


def test_another_bundles_manifest(fleet: SignedFleet) -> None:
    release, other = fleet.publish(version="1"), fleet.publish(version="2")
    with pytest.raises(ManifestMismatchError):
        verify_manifest(release, fleet.manifests[other.sha256])


def signed_anyway(fleet: SignedFleet, raw: bytes) -> BundleRelease:
    """A release role that was signed for bytes which the releaser's own tool would refuse."""
    fleet.publish()
    role = fleet.read("2.release.json").signed
    target = role.targets["bundles/cam/m-1"]
    target.length, target.hashes = len(raw), {"sha256": sha256(raw).hexdigest()}
    raw_role = fleet.signed_by("release", role)
    pack = fleet.pack_with_role("release", raw_role, role.version)
    state = Reader(fleet.root).refresh(fleet.offered(release=raw_role), pack, fleet.now_s)
    return releases(state)["bundles/cam/m-1"]


def test_manifest_of_another_version_signed_under_this_path(fleet: SignedFleet) -> None:
    raw = raw_manifest("m", "9")
    release = signed_anyway(fleet, raw)
    with pytest.raises(ManifestMismatchError, match="version 9"):
        verify_manifest(release, raw)


def test_signed_and_no_manifest(fleet: SignedFleet) -> None:
    release = signed_anyway(fleet, b"{}")
    with pytest.raises(ManifestError):
        verify_manifest(release, b"{}")
