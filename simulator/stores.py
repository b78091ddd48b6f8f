"""What a device keeps, in memory: journal, trust, pieces, slots. The rules are the ports', the disk is not.

Rules: every byte that arrives is hashed and compared as on a device, then thrown away; what is left
is digests. A store that a real device would refuse to write to refuses here as well.
"""

import hashlib
import sys
from collections.abc import Mapping
from typing import Any

from agent.bundle import BundleFileError, Manifest
from agent.delivery import PieceDigestError
from agent.errors import DeviceError
from agent.ports import PieceStore
from agent.trust import TrustState
from agent.update.journal import JournalContent, ModelRecord, Refusal
from simulator.library import SLOT_SCHEME, Library

__all__ = ["MemoryJournal", "MemoryPieces", "MemorySlots", "MemoryTrustStore"]


class MemoryJournal:
    """``agent.update.Journal`` that forgets with the device."""

    __slots__ = ("_models", "_refusals")

    def __init__(self) -> None:
        self._models: Mapping[str, ModelRecord] = {}
        self._refusals: tuple[Refusal, ...] = ()

    def load(self) -> JournalContent:
        return JournalContent(dict(self._models), self._refusals)

    def save(self, record: ModelRecord, refusal: Refusal | None = None) -> None:
        self._models = {**self._models, record.model: record}
        if refusal is not None:
            self._refusals = (*self._refusals, refusal)


class MemoryTrustStore:
    """``agent.trust.TrustStore``; states are immutable and shared between devices that agree."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state = TrustState()

    def load(self) -> TrustState:
        return self._state

    def save(self, state: TrustState) -> None:
        self._state = state


class MemoryPieces:
    """``agent.ports.PieceStore``: a piece is hashed while it arrives; only its digest stays."""

    __slots__ = ("_partial", "_whole")

    def __init__(self) -> None:
        self._whole: frozenset[str] = frozenset()
        self._partial: dict[str, tuple[Any, int]] = {}  # hash object and bytes so far

    def has(self, sha256: str) -> bool:
        return sha256 in self._whole

    def read(self, sha256: str) -> bytes:
        raise DeviceError(
            f"piece {sha256} was verified and thrown away: this device keeps digests."
        )

    def partial_size(self, sha256: str) -> int:
        return self._partial.get(sha256, (None, 0))[1]

    def append(self, sha256: str, offset: int, data: bytes) -> None:
        state, size = self._partial.get(sha256) or (hashlib.sha256(), 0)
        if offset != size:
            raise DeviceError(
                f"piece {sha256} has {size} bytes and cannot be continued at {offset}: fetch it again."
            )
        state.update(data)
        self._partial[sha256] = (state, size + len(data))

    def complete(self, sha256: str, size: int) -> None:
        state, got = self._partial.pop(sha256, (hashlib.sha256(), 0))
        if got != size or state.hexdigest() != sha256:
            raise PieceDigestError(sha256, f"{got} bytes of {size} came, with another digest")
        self._whole |= {sys.intern(sha256)}

    def discard(self, sha256: str) -> None:
        self._partial.pop(sha256, None)
        self._whole -= {sha256}

    def keep_only(self, digests: frozenset[str]) -> None:
        self._whole &= digests
        for sha256 in self._partial.keys() - digests:
            del self._partial[sha256]


class MemorySlots:
    """``agent.ports.SlotStore``: a slot is the digest of a manifest that the library holds."""

    __slots__ = ("_library", "_sealed")

    def __init__(self, library: Library) -> None:
        self._library = library
        self._sealed: frozenset[str] = frozenset()

    def stage(self, manifest: Manifest, raw_manifest: bytes, pieces: PieceStore) -> None:
        for file in manifest.files:
            for piece in file.pieces:
                if not pieces.has(piece.sha256):
                    raise BundleFileError(
                        f"{manifest.path}: {file.name} needs piece {piece.sha256}, which is not on "
                        "this device: fetch it first."
                    )
        self._sealed |= {sys.intern(self._library.add(manifest, raw_manifest))}

    def path(self, manifest_sha256: str) -> str:
        self.verify(manifest_sha256)
        return SLOT_SCHEME + manifest_sha256

    def manifest(self, manifest_sha256: str) -> Manifest | None:
        if manifest_sha256 not in self._sealed:
            return None
        return self._library.manifest(manifest_sha256)

    def verify(self, manifest_sha256: str) -> None:
        if manifest_sha256 not in self._sealed:
            raise DeviceError(f"there is no slot {manifest_sha256}: install the bundle again.")

    def keep_only(self, digests: frozenset[str]) -> None:
        self._sealed &= digests
