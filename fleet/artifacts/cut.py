"""Cutting a file into pieces. Devices only put pieces one behind the other, so a better cut is a change here alone."""

import hashlib

from agent.bundle import PIECE_BYTES, BundleFile, Piece

__all__ = ["cut_file"]


def cut_file(name: str, data: bytes) -> BundleFile:
    """The entry of a file in the manifest: pieces of ``PIECE_BYTES``, the last one shorter."""
    view = memoryview(data)
    pieces = tuple(
        Piece(hashlib.sha256(part).hexdigest(), len(part))
        for at in range(0, len(data), PIECE_BYTES)
        for part in (view[at : at + PIECE_BYTES],)
    )
    return BundleFile(name, len(data), hashlib.sha256(data).hexdigest(), pieces)
