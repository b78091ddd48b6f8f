"""A bundle on disk: ``manifest.json`` and the files at their names, nothing else.

Rules kept here, because a bundle is hostile until proven otherwise: no symbolic link is followed at
any depth, only regular files with a single link are read, reading is bounded by what the manifest
says, and a file or folder the manifest does not name is refused. Nothing is written. A disk that fails
while reading is the device's fault (DeviceError), never the bundle's.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from agent.bundle.errors import BundleFileError
from agent.bundle.manifest import MAX_MANIFEST_BYTES, BundleFile, Manifest, manifest_sha256
from agent.bundle.names import MANIFEST_NAME, MAX_NAME_DEPTH, check_name
from agent.bundle.parse import parse_manifest
from agent.errors import DeviceError

__all__ = ["open_bundle_file", "read_bundle", "verify_folder"]

# What opening says of a folder that is not as it should be; anything else is the disk or the machine.
_NOT_AS_IT_SHOULD_BE: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EACCES}
)


def read_bundle(path: str | os.PathLike[str]) -> tuple[Manifest, bytes]:
    """The manifest of the bundle in folder ``path`` and its raw bytes; no file is checked.

    Raises:
        BundleFileError: there is no readable manifest.
        ManifestError: the manifest breaks a rule.
        DeviceError: the disk cannot be read.
    """
    root = Path(path)
    with _open_regular(root, (MANIFEST_NAME,)) as stream, _reading(root, MANIFEST_NAME):
        raw = stream.read(MAX_MANIFEST_BYTES + 1)
    return parse_manifest(raw), raw


def verify_folder(path: str | os.PathLike[str], *, expected_sha256: str = "") -> Manifest:
    """Hash every file and piece of the bundle in ``path``; refuse anything missing, extra or unlike
    the manifest. Returns the manifest.

    ``expected_sha256``: what the manifest's own digest must be, when that is known.

    Raises:
        BundleFileError: names the first file that does not fit and how.
        ManifestError: the manifest breaks a rule.
        DeviceError: the disk cannot be read.
    """
    root = Path(path)
    manifest, raw = read_bundle(root)
    if expected_sha256 and manifest_sha256(raw) != expected_sha256:
        raise BundleFileError(
            f"bundle {root}: manifest.json has sha256 {manifest_sha256(raw)}, "
            f"not {expected_sha256}; fetch the bundle again"
        )
    allowed = {MANIFEST_NAME, *(file.name for file in manifest.files)}
    with _reading(root, "."):
        names = list(_walk(root))
    for name in names:
        if name not in allowed:
            raise BundleFileError(
                f"bundle {root} holds {name!r}, which its manifest does not name; remove it"
            )
    for file in manifest.files:
        with open_bundle_file(root, file.name) as stream, _reading(root, file.name):
            _verify_file(root, file, stream)
    return manifest


def open_bundle_file(root: str | os.PathLike[str], name: str) -> BinaryIO:
    """Open a file of the bundle in folder ``root`` for reading, following no link below ``root``.

    Raises:
        ManifestError: ``name`` is not an allowed name.
        BundleFileError: there is no such file, or it is no regular file with one link.
        DeviceError: the disk cannot be read.
    """
    return _open_regular(Path(root), tuple(check_name(name).split("/")))


def _open_regular(root: Path, parts: tuple[str, ...]) -> BinaryIO:
    name = "/".join(parts)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with ExitStack() as folders:
            folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            folders.callback(os.close, folder)
            for part in parts[:-1]:
                folder = os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
                folders.callback(os.close, folder)
            # O_NONBLOCK: opening a FIFO must not wait for a writer that never comes
            file = os.open(parts[-1], flags | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        if error.errno not in _NOT_AS_IT_SHOULD_BE:
            raise _unreadable(root, name, error) from error
        raise BundleFileError(
            f"bundle {root}: cannot open {name!r}: {error.strerror} (links are not followed)"
        ) from error
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise BundleFileError(f"bundle {root}: {name!r} is not a regular file; replace it")
        if found.st_nlink != 1:
            raise BundleFileError(
                f"bundle {root}: {name!r} has {found.st_nlink} hard links, so it could change "
                f"from elsewhere; copy the file"
            )
        return os.fdopen(file, "rb")
    except BaseException:
        os.close(file)
        raise


@contextmanager
def _reading(root: Path, name: str) -> Iterator[None]:
    """A failing disk inside is the device's error."""
    try:
        yield
    except OSError as error:
        raise _unreadable(root, name, error) from error


def _unreadable(root: Path, name: str, error: OSError) -> DeviceError:
    return DeviceError(
        f"bundle {root}: cannot read {name!r}: {error.strerror or error}; check the disk and its "
        f"permissions"
    )


def _walk(root: Path, prefix: str = "", depth: int = 1) -> Iterator[str]:
    """Names of everything below ``root`` but folders; a folder only when too deep or empty."""
    empty = True
    with os.scandir(root / prefix) as entries:
        for entry in entries:
            empty = False
            name = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False) and depth < MAX_NAME_DEPTH:
                yield from _walk(root, f"{name}/", depth + 1)
            else:
                yield name
    if empty and prefix:
        yield prefix


def _verify_file(root: Path, file: BundleFile, stream: BinaryIO) -> None:
    size = os.fstat(stream.fileno()).st_size
    if size != file.size:
        raise BundleFileError(
            f"bundle {root}: {file.name!r} has {size} bytes, the manifest says {file.size}"
        )
    whole = hashlib.sha256()
    for index, piece in enumerate(file.pieces):
        data = stream.read(piece.size)
        whole.update(data)
        if hashlib.sha256(data).hexdigest() != piece.sha256:
            raise BundleFileError(
                f"bundle {root}: piece {index} of {file.name!r} does not have the sha256 the "
                f"manifest says; the file was changed or damaged"
            )
    if whole.hexdigest() != file.sha256:
        raise BundleFileError(
            f"bundle {root}: {file.name!r} has sha256 {whole.hexdigest()}, "
            f"the manifest says {file.sha256}; the file was changed or damaged"
        )
