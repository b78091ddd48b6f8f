"""Who is in a stage: the one function that devices and the fleet manager both use.

Rules kept here:

* A device's place depends on the bundle and the device alone, so that it is the same wherever it is
  computed.
* Cohorts are nested: whoever is in at 1 % is still in at 10 %.
* The salt is the digest of the manifest, which an offline role has signed: whoever holds the online
  key can neither aim a stage at chosen devices nor walk the fleet device by device.
"""

import hashlib
from collections.abc import Callable
from typing import Final

__all__ = ["SLOTS", "in_cohort", "slot_of", "slots_of"]

SLOTS: Final = 10_000
"""Number of places; one place is one basis point."""

_DOMAIN: Final = b"cohort-v1"


def slot_of(manifest_sha256: str, device_id: str) -> int:
    """The place of a device in the order in which a bundle reaches the fleet.

    The first 8 bytes (big-endian) of SHA-256 over ``cohort-v1``, the 32 raw bytes of the manifest's
    digest and the device id in UTF-8, modulo 10000.

    Args:
        manifest_sha256: digest of the manifest, 64 hexadecimal digits.
        device_id: id of the device.

    Returns:
        A number from 0 to 9999.

    Raises:
        ValueError: the digest is not 64 hexadecimal digits.
    """
    return slots_of(manifest_sha256)(device_id)


def slots_of(manifest_sha256: str) -> Callable[[str], int]:
    """``slot_of`` of one bundle, for many devices: the digest is read once.

    Raises:
        ValueError: the digest is not 64 hexadecimal digits.
    """
    salt = bytes.fromhex(manifest_sha256)
    begun = hashlib.sha256(_DOMAIN + salt)
    if len(salt) != begun.digest_size:
        raise ValueError(f"manifest digest {manifest_sha256!r} is not 64 hexadecimal digits")

    def slot(device_id: str) -> int:
        digest = begun.copy()
        digest.update(device_id.encode())
        return int.from_bytes(digest.digest()[:8], "big") % SLOTS

    return slot


def in_cohort(manifest_sha256: str, device_id: str, percent_bp: int) -> bool:
    """Whether a device is in a bundle's cohort at ``percent_bp`` basis points (10000 is everyone).

    Raises:
        ValueError: the digest is not 64 hexadecimal digits.
    """
    return slot_of(manifest_sha256, device_id) < percent_bp
