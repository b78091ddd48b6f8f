"""A manifest against the release that was signed for it.

Rules kept here:

* Nothing in a manifest is read before its length and digest are those that were signed.
* What the manifest says of itself must be what the release says of it.
"""

import hashlib

from agent.bundle import Manifest, parse_manifest
from agent.trust.errors import ManifestMismatchError
from agent.trust.release import BundleRelease

__all__ = ["verify_manifest"]


def verify_manifest(release: BundleRelease, raw: bytes) -> Manifest:
    """The manifest of a signed release, from bytes of unknown origin.

    Raises:
        ManifestMismatchError: these are not the bytes that were signed, or they describe another
            bundle.
        ManifestError: they are, and still break a rule of the format.
    """
    digest = hashlib.sha256(raw).hexdigest()
    if len(raw) != release.length or digest != release.sha256:
        raise ManifestMismatchError(
            f"the manifest of {release.path} is {len(raw)} bytes with digest {digest}; signed are "
            f"{release.length} "
            f"bytes with digest {release.sha256}. It was altered or mixed up on the way"
        )
    manifest = parse_manifest(raw)
    described = (manifest.model, manifest.version, manifest.device_class)
    if described != (release.model, release.version, release.device_class):
        raise ManifestMismatchError(
            f"the manifest of {release.path} describes model {manifest.model}, version "
            f"{manifest.version}, class "
            f"{manifest.device_class}; publish the bundle under its own path"
        )
    return manifest
