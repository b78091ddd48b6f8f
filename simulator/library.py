"""What all devices of a world may share, because no device changes it: manifests, by their digest.

A slot of a simulated device is a digest and nothing more; its manifest is here, parsed once.
"""

from typing import Final

from agent.bundle import Manifest, manifest_sha256
from agent.errors import DeviceError

__all__ = ["SLOT_SCHEME", "Library", "digest_in"]

SLOT_SCHEME: Final = "memory:"
MAX_MANIFESTS: Final = 4096


class Library:
    """Manifests that some device has verified, one object each, whatever the number of devices."""

    __slots__ = ("_manifests",)

    def __init__(self) -> None:
        self._manifests: dict[str, Manifest] = {}

    def add(self, manifest: Manifest, raw: bytes) -> str:
        """Keep a manifest that its caller has verified; return its digest.

        Raises:
            DeviceError: there are more than ``MAX_MANIFESTS``.
        """
        digest = manifest_sha256(raw)
        if digest not in self._manifests and len(self._manifests) >= MAX_MANIFESTS:
            raise DeviceError(
                f"this world has seen {MAX_MANIFESTS} bundles and keeps no more: start a new one."
            )
        self._manifests.setdefault(digest, manifest)
        return digest

    def manifest(self, digest: str) -> Manifest:
        """The manifest of a slot.

        Raises:
            DeviceError: no device of this world has it.
        """
        try:
            return self._manifests[digest]
        except KeyError:
            raise DeviceError(f"no device of this world has a slot {digest}.") from None


def digest_in(slot_path: str) -> str:
    """The manifest digest in the path of a slot."""
    return slot_path.removeprefix(SLOT_SCHEME)
