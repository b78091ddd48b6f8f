"""Durable files of the repository.

Rules kept here: a file is either as it was or as it is to be, also after a power cut; what is
secret is readable by its owner alone from the first byte on.
"""

import contextlib
import os
import tempfile
from pathlib import Path

from fleet.errors import ServerError

__all__ = ["write_durable"]


def write_durable(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace or make a file: temporary file beside it, fsync, rename, fsync of the folder.

    Raises:
        ServerError: the disk is full or not writable.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise ServerError(
            f"cannot write {path}: {error.strerror or error}. Check the disk of the fleet folder"
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
