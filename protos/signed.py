"""What a signature between a device and the fleet manager is made over, in one place for both sides.

Rules kept here: each purpose begins with a name of its own, so that no signature can stand for another; the fleet and
the device are part of it, each behind its length, so that no two ways of saying it read alike.
"""

from typing import Final

__all__ = ["ACK", "REPORTS", "signed_bytes"]

REPORTS: Final = b"muster-report-v1"
ACK: Final = b"muster-ack-v1"


def signed_bytes(purpose: bytes, fleet: str, device_id: str, body: bytes) -> bytes:
    """The bytes to sign or to verify: ``body`` of ``purpose``, from or to one device of one fleet."""
    parts = [purpose]
    for name in (fleet, device_id):
        raw = name.encode()
        parts += [len(raw).to_bytes(2, "big"), raw]
    return b"".join([*parts, body])
