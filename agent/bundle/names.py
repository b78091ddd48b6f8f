"""Names that cannot escape: the rules for file names inside a bundle and for identifiers.

A file name is relative, at most three ``[A-Za-z0-9._-]`` parts deep, no part starts with a dot,
``manifest.json`` is reserved, and no two names (files or folders) are equal once case is folded:
the same bundle must mean the same files on every file system.
"""

import re
from collections.abc import Iterable
from typing import Final

from agent.bundle.errors import ManifestError

__all__ = [
    "CLASS_PATTERN",
    "MANIFEST_NAME",
    "MAX_NAME_CHARS",
    "MAX_NAME_DEPTH",
    "MODEL_PATTERN",
    "TENSOR_PATTERN",
    "VERSION_PATTERN",
    "check_name",
    "check_names",
]

MANIFEST_NAME: Final = "manifest.json"
MAX_NAME_DEPTH: Final = 3
MAX_NAME_CHARS: Final = 200

MODEL_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
VERSION_PATTERN: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
CLASS_PATTERN: Final = re.compile(r"[a-z0-9-]{1,40}")
# Tensor, stage, case and parameter names travel in requests: printable ASCII, no spaces.
TENSOR_PATTERN: Final = re.compile(r"[\x21-\x7e]{1,128}")
_PART: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def check_name(name: str, where: str = "file name") -> str:
    """Return ``name`` when it may be a file of a bundle.

    Raises:
        ManifestError: it could leave the folder, hide, or collide with the manifest.
    """
    parts = name.split("/")
    if len(name) > MAX_NAME_CHARS:
        raise ManifestError(
            f"{where} {name[:40]!r}… is longer than {MAX_NAME_CHARS} characters; shorten it"
        )
    if len(parts) > MAX_NAME_DEPTH:
        raise ManifestError(
            f"{where} {name!r} is more than {MAX_NAME_DEPTH} folders deep; move the file up"
        )
    for part in parts:
        if not _PART.fullmatch(part):
            raise ManifestError(
                f"{where} {name!r} is not allowed: it must be relative, each part made of letters, "
                f"digits, '.', '_' and '-' and not starting with a dot; rename the file"
            )
    if parts[0].casefold() == MANIFEST_NAME:
        raise ManifestError(
            f"{where} {name!r} is reserved for the manifest itself; rename the file"
        )
    return name


def check_names(names: Iterable[str], where: str = "file name") -> None:
    """Check each name and that all of them can lie beside each other on any file system.

    Raises:
        ManifestError: a name is not allowed, comes twice, differs from another by case only, or is
            a file in one place and a folder in another.
    """
    seen: dict[str, tuple[str, bool]] = {}  # folded path -> (path as written, is it a file)
    for name in names:
        check_name(name, where)
        parts = name.split("/")
        for depth in range(1, len(parts) + 1):
            path, is_file = "/".join(parts[:depth]), depth == len(parts)
            if path.casefold() not in seen:
                seen[path.casefold()] = (path, is_file)
                continue
            other, other_is_file = seen[path.casefold()]
            if other != path:
                raise ManifestError(
                    f"{where}s {other!r} and {path!r} differ by case only; rename one of them"
                )
            if other_is_file != is_file:
                raise ManifestError(
                    f"{where} {path!r} is both a file and a folder; rename one of them"
                )
            if is_file:
                raise ManifestError(f"{where} {name!r} comes twice; remove one of them")
