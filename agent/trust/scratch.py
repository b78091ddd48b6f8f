"""The folder in which the TUF client works: filled from a state, read back, thrown away.

Rules kept here: the folder is private and lies in memory where the system has a memory file system;
it is gone after the refresh, whatever happens; durability is the trust store's.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

__all__ = ["fill", "read_back", "scratch_folder"]

_MEMORY_FOLDER: Final = "/dev/shm"  # noqa: S108 (a fresh private folder is made in it)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    in_memory = _MEMORY_FOLDER if os.access(_MEMORY_FOLDER, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="muster-trust-", dir=in_memory) as folder:
        yield Path(folder)


def fill(folder: Path, files: Mapping[str, bytes]) -> None:
    (folder / "root_history").mkdir()
    for name, content in files.items():
        (
            folder / "root_history" / name if name.endswith(".root.json") else folder / name
        ).write_bytes(content)


def read_back(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in (folder / "root_history").glob("*.json")}
    found |= {
        path.name: path.read_bytes() for path in folder.glob("*.json") if path.name != "root.json"
    }
    return found
