"""Pieces, manifests and attestations in a folder of the fleet manager, each under its digest.

Rules kept here: what is stored has been verified and is durable when ``put`` returns; a reader sees a
whole piece or none; a stored piece that no longer has its digest counts as missing, so that publishing
the bundle again repairs it; a digest is checked before it becomes part of a path.

Layout: ``pieces/ab/abcd...``, and the same for ``manifests`` and ``attestations`` beside.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agent.bundle import MAX_MANIFEST_BYTES, PIECE_BYTES
from fleet.claims.attestation import MAX_ATTESTATION_BYTES, attestation_digest
from fleet.errors import RefusedError, RequestError, ServerError
from fleet.repository.files import write_durable

__all__ = ["FolderArtifacts"]

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class FolderArtifacts:
    """The artifacts below ``root``, which is made when something is stored. Safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, sha256: str, data: bytes) -> None:
        """Store a piece; storing it again changes nothing.

        Raises:
            RefusedError: the bytes do not have that digest, or are too many for a piece.
            RequestError: that is no digest. ServerError: the disk is full or not writable.
        """
        if len(data) > PIECE_BYTES:
            raise RefusedError(
                f"piece {sha256[:12]} has {len(data)} bytes, at most {PIECE_BYTES} are allowed"
            )
        self._put("pieces", sha256, data)

    def get(self, sha256: str) -> bytes | None:
        """A piece as it is on disk, not verified again: devices verify. None when there is none.

        Raises:
            RequestError: that is no digest. ServerError: it cannot be read.
        """
        return self._get("pieces", sha256)

    def read(self, sha256: str, offset: int, max_bytes: int) -> bytes | None:
        """Up to ``max_bytes`` of a piece from ``offset`` on; None when there is no such piece.

        Raises:
            RequestError: that is no digest. ServerError: it cannot be read.
        """
        path = self._path("pieces", sha256)
        try:
            with path.open("rb") as stream:
                stream.seek(offset)
                return stream.read(max_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Which of these pieces are not here, or no longer what they should be; each once, in order.

        Raises:
            RequestError: one is no digest. ServerError: one cannot be read.
        """
        absent = []
        for sha256 in dict.fromkeys(digests):
            data = self._get("pieces", sha256)
            if data is None or hashlib.sha256(data).hexdigest() != sha256:
                absent.append(sha256)
        return absent

    def put_manifest(self, raw: bytes) -> str:
        """Store the bytes of a manifest; returns their digest.

        Raises:
            RefusedError: they are too many for a manifest. ServerError: the disk is full or not writable.
        """
        if len(raw) > MAX_MANIFEST_BYTES:
            raise RefusedError(
                f"the manifest has {len(raw)} bytes, at most {MAX_MANIFEST_BYTES} are allowed"
            )
        sha256 = hashlib.sha256(raw).hexdigest()
        self._put("manifests", sha256, raw)
        return sha256

    def manifest(self, sha256: str) -> bytes | None:
        """The bytes of a manifest; None when there is none.

        Raises:
            RequestError: that is no digest. ServerError: it cannot be read.
        """
        return self._get("manifests", sha256)

    def put_attestation(self, raw: bytes) -> str:
        """Store an attestation of a bundle's checks; returns its digest.

        Raises:
            RefusedError: it is too large. ServerError: the disk is full or not writable.
        """
        if len(raw) > MAX_ATTESTATION_BYTES:
            raise RefusedError(
                f"the attestation has {len(raw)} bytes, at most {MAX_ATTESTATION_BYTES} are allowed"
            )
        sha256 = attestation_digest(raw)
        self._put("attestations", sha256, raw)
        return sha256

    def attestation(self, sha256: str) -> bytes | None:
        """The bytes of an attestation; None when there is none.

        Raises:
            RequestError: that is no digest. ServerError: it cannot be read.
        """
        return self._get("attestations", sha256)

    def _path(self, kind: str, sha256: str) -> Path:
        if not _DIGEST.fullmatch(sha256):
            raise RequestError(f"{sha256[:80]!r} is no sha256 digest in lower-case hex")
        return self._root / kind / sha256[:2] / sha256

    def _get(self, kind: str, sha256: str) -> bytes | None:
        path = self._path(kind, sha256)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error

    def _put(self, kind: str, sha256: str, data: bytes) -> None:
        path = self._path(kind, sha256)
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise RefusedError(
                f"the bytes sent for {sha256[:12]} have the digest {found[:12]}; send them again"
            )
        if self._get(kind, sha256) == data:
            return
        try:
            for folder in (path.parent.parent, path.parent):
                if not folder.is_dir():
                    folder.mkdir(parents=True, exist_ok=True)
                    _sync(folder.parent)
        except OSError as error:
            raise ServerError(
                f"cannot make {path.parent}: {error.strerror or error}. Check the disk of the fleet folder"
            ) from error
        write_durable(path, data)


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unreadable(path: Path, error: OSError) -> ServerError:
    return ServerError(
        f"cannot read {path}: {error.strerror or error}. Check the disk of the fleet folder"
    )
