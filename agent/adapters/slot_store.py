"""Slots in a folder: ``DIGEST/`` is a sealed bundle, laid out as ``agent.bundle.folder`` reads it.

Rules kept here:
- A slot is assembled in ``.new-DIGEST``: every piece is hashed as it is read, every file after its
  last piece; everything is synced and made read-only; then one rename seals it. A name that is a
  digest is a bundle that was whole.
- A slot is removed by renaming it to ``.old-DIGEST`` first, so half a slot never bears its name.
- Files are made with O_EXCL and O_NOFOLLOW: nothing that lies there is ever written through.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from agent.adapters.durable import disk_errors, free_bytes, fsync_folder, make_folder
from agent.adapters.measured import MeasuredStore
from agent.bundle import (
    MANIFEST_NAME,
    BundleFile,
    BundleFileError,
    Manifest,
    check_name,
    manifest_sha256,
)
from agent.bundle.folder import read_bundle, verify_folder
from agent.delivery import PieceDigestError
from agent.errors import BundleError, DeviceError
from agent.ports import PieceStore

__all__ = ["FolderSlotStore"]

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NEW: Final = ".new-"
_OLD: Final = ".old-"


class FolderSlotStore:
    """Implements ``ports.SlotStore``."""

    def __init__(self, root: Path, measured: MeasuredStore | None = None) -> None:
        """``measured``: what is kept beside the slots and goes with them.

        Raises:
            DeviceError: the folder cannot be made.
        """
        self._measured = measured
        self._root = make_folder(root)

    def free_bytes(self) -> int:
        """Room on the disk of the slots. Raises DeviceError."""
        return free_bytes(self._root)

    def stage(self, manifest: Manifest, raw_manifest: bytes, pieces: PieceStore) -> None:
        """See ``ports.SlotStore.stage``. A slot of that name that is there already is replaced.

        Raises:
            PieceDigestError: a kept piece is gone or damaged; it was thrown away, fetch it again.
            BundleFileError: the pieces are right and the file is not: the manifest contradicts itself.
            DiskFullError, DeviceError: the disk.
        """
        digest = manifest_sha256(raw_manifest)
        new = self._root / f"{_NEW}{digest}"
        with disk_errors("write", new):
            self._remove(new)
            new.mkdir(mode=0o700)
            try:
                for file in manifest.files:
                    _assemble(new, file, pieces)
                _write_new(new / MANIFEST_NAME, (raw_manifest,))
                _seal(new)
                self._retire(digest)
                new.rename(self._root / digest)
                fsync_folder(self._root)
            except BaseException:
                self._remove(new)
                raise
        self._sweep()

    def path(self, manifest_sha256: str) -> str:
        path = self._slot(manifest_sha256)
        if not path.is_dir():
            raise DeviceError(f"there is no slot {manifest_sha256[:12]}… in {self._root}")
        return str(path)

    def manifest(self, manifest_sha256: str) -> Manifest | None:
        """None also when the manifest on disk is not the one that was sealed."""
        path = self._slot(manifest_sha256)
        if not path.is_dir():
            return None
        try:
            with disk_errors("read", path):
                manifest, raw = read_bundle(path)
        except BundleError:
            return None  # what was sealed is not there any more, so there is no such slot
        return manifest if hashlib.sha256(raw).hexdigest() == manifest_sha256 else None

    def verify(self, manifest_sha256: str) -> None:
        path = Path(self.path(manifest_sha256))
        with disk_errors("read", path):
            verify_folder(path, expected_sha256=manifest_sha256)

    def keep_only(self, digests: frozenset[str]) -> None:
        with disk_errors("clear", self._root):
            for path in list(self._root.iterdir()):
                if _DIGEST.fullmatch(path.name) and path.name not in digests:
                    self._retire(path.name)
        self._sweep()
        if self._measured is not None:
            self._measured.keep_only(digests)

    # --- inside -----------------------------------------------------------------------------------

    def _slot(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise DeviceError(f"{digest[:80]!r} is not the digest of a manifest")
        return self._root / digest

    def _retire(self, digest: str) -> None:
        """Take the name away from a slot; ``_sweep`` removes its bytes."""
        old = self._root / f"{_OLD}{digest}"
        path = self._slot(digest)
        if not path.is_dir():
            return
        self._remove(old)
        path.rename(old)
        fsync_folder(self._root)

    def _sweep(self) -> None:
        with disk_errors("clear", self._root):
            for path in list(self._root.iterdir()):
                if path.name.startswith((_NEW, _OLD)):
                    self._remove(path)

    def _remove(self, path: Path) -> None:
        if not path.is_dir():
            return
        for folder, _, _ in os.walk(path):
            Path(folder).chmod(0o700)  # sealed folders are read-only
        shutil.rmtree(path)


def _assemble(root: Path, file: BundleFile, pieces: PieceStore) -> None:
    path = root / check_name(file.name)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    whole = hashlib.sha256()

    def contents() -> Iterator[bytes]:
        for piece in file.pieces:
            data = _piece(piece.sha256, piece.size, pieces)
            whole.update(data)
            yield data

    _write_new(path, contents())
    if whole.hexdigest() != file.sha256:
        raise BundleFileError(
            f"{file.name!r}: its pieces are right but make up sha256 {whole.hexdigest()}, the manifest "
            f"says {file.sha256}; build and publish the bundle again"
        )


def _piece(sha256: str, size: int, pieces: PieceStore) -> bytes:
    if not pieces.has(sha256):
        raise PieceDigestError(sha256, "it is not here any more")
    data = pieces.read(sha256)
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        pieces.discard(sha256)
        raise PieceDigestError(sha256, "it was damaged on the disk")
    return data


def _write_new(path: Path, contents: Iterable[bytes]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o400), "wb") as stream:
        for data in contents:
            stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _seal(root: Path) -> None:
    """Sync every folder, innermost first, and make it read-only."""
    for folder, _, _ in os.walk(root, topdown=False):
        fsync_folder(Path(folder))
        Path(folder).chmod(0o500)
