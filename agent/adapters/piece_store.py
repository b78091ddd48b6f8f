"""Pieces in a folder: ``DIGEST`` is a piece that was verified, ``DIGEST.part`` one on its way.

Rules kept here:
- A name without ``.part`` appears only by renaming a file whose digest was checked and which was
  synced. What is there after a power cut was whole before it.
- A partial piece is not synced: at worst the bytes since the last piece are fetched again, and a
  piece whose bytes the power cut garbled fails its digest and is thrown away.
- Names are digests; nothing else in the folder is looked at, and no link is followed.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.adapters.durable import disk_errors, free_bytes, fsync_folder, make_folder
from agent.delivery import PieceDigestError
from agent.errors import DeviceError

__all__ = ["FilePieceStore"]

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_PART: Final = ".part"
_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC


class FilePieceStore:
    """Implements ``ports.PieceStore``."""

    def __init__(self, root: Path) -> None:
        """Raises DeviceError when the folder cannot be made."""
        self._root = make_folder(root)

    def free_bytes(self) -> int:
        """Room on the disk of the pieces. Raises DeviceError."""
        return free_bytes(self._root)

    def has(self, sha256: str) -> bool:
        return self._path(sha256).is_file()

    def read(self, sha256: str) -> bytes:
        path = self._path(sha256)
        with disk_errors("read", path), os.fdopen(os.open(path, os.O_RDONLY | _FLAGS), "rb") as f:
            return f.read()

    def partial_size(self, sha256: str) -> int:
        try:
            return self._part(sha256).lstat().st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise DeviceError(f"cannot read {self._part(sha256)}: {error.strerror}") from error

    def append(self, sha256: str, offset: int, data: bytes) -> None:
        path = self._part(sha256)
        held = self.partial_size(sha256)
        if offset != held:
            raise DeviceError(
                f"piece {sha256[:12]}… has {held} bytes, byte {offset} cannot follow; fetch on from {held}"
            )
        with disk_errors("write", path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _FLAGS
            with os.fdopen(os.open(path, flags, 0o600), "ab", buffering=0) as stream:
                view = memoryview(data)
                while view:
                    view = view[stream.write(view) :]

    def complete(self, sha256: str, size: int) -> None:
        path = self._part(sha256)
        with disk_errors("write", path):
            try:
                descriptor = os.open(path, os.O_RDWR | _FLAGS)
            except FileNotFoundError:
                raise PieceDigestError(sha256, "none of its bytes are here") from None
            with os.fdopen(descriptor, "rb") as stream:
                found = os.fstat(descriptor).st_size
                digest = hashlib.file_digest(stream, "sha256").hexdigest() if found == size else ""
                if digest == sha256:
                    os.fsync(descriptor)
            if digest != sha256:
                path.unlink(missing_ok=True)
                what = f"{found} bytes where {size} were due" if found != size else "wrong digest"
                raise PieceDigestError(sha256, what)
            path.replace(self._path(sha256))
            fsync_folder(self._root)

    def discard(self, sha256: str) -> None:
        for path in (self._path(sha256), self._part(sha256)):
            with disk_errors("remove", path):
                path.unlink(missing_ok=True)

    def keep_only(self, digests: frozenset[str]) -> None:
        with disk_errors("clear", self._root):
            for path in list(self._ours()):
                if path.name.removesuffix(_PART) not in digests:
                    path.unlink(missing_ok=True)
            fsync_folder(self._root)

    def _ours(self) -> Iterator[Path]:
        for path in self._root.iterdir():
            if _DIGEST.fullmatch(path.name.removesuffix(_PART)):
                yield path

    def _path(self, sha256: str) -> Path:
        if not _DIGEST.fullmatch(sha256):
            raise DeviceError(f"{sha256[:80]!r} is not the digest of a piece")
        return self._root / sha256

    def _part(self, sha256: str) -> Path:
        return self._path(sha256).with_name(sha256 + _PART)
