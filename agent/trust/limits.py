"""How large metadata may be: it is small, and what is large is an attack on memory or patience."""

from dataclasses import dataclass

__all__ = ["TrustLimits"]

_KIB = 1024


@dataclass(frozen=True, slots=True)
class TrustLimits:
    """Limits on what a device reads before it has been verified.

    Attributes:
        pack_bytes: the pack as it arrives.
        pack_unpacked_bytes: the pack after unpacking.
        pack_files: metadata files in a pack.
        root_bytes, timestamp_bytes, snapshot_bytes, targets_bytes: one metadata file of that role;
            ``targets`` holds for delegated roles too.
        levels: how deep arrays and objects may lie in each other in a metadata file.
        root_rotations: new roots that are followed in one refresh.
        delegations: delegated roles that are visited for one path.
    """

    pack_bytes: int = 64 * _KIB
    pack_unpacked_bytes: int = 1024 * _KIB
    pack_files: int = 80
    root_bytes: int = 64 * _KIB
    timestamp_bytes: int = 4 * _KIB
    snapshot_bytes: int = 64 * _KIB
    targets_bytes: int = 512 * _KIB
    levels: int = 32
    root_rotations: int = 64
    delegations: int = 8
