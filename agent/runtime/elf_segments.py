"""Which bytes of a shared library nothing ever writes to in memory. Pure: the file's first bytes in, ranges out.

Rules kept here:
- What cannot be read as ELF of this machine's byte order has no such bytes.
- The dynamic linker writes to the segments marked writable, and to nothing else of a library without text
  relocations; also to the part it makes read-only afterwards, which looks like untouched code in a list of mappings.
"""

import struct
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["HEAD_BYTES", "FileRange", "never_written"]

HEAD_BYTES: Final = 4096
"""The program headers follow the file header; a library that has them elsewhere has no ranges."""
_MAGIC: Final = b"\x7fELF"
_PT_LOAD: Final = 1
_PF_W: Final = 2
_MAX_HEADERS: Final = 64


class FileRange(NamedTuple):
    """Bytes of a file, ``end`` not among them."""

    start: int
    end: int


class _Layout(NamedTuple):
    """Where a class of ELF has its fields. Source: System V ABI, "ELF Header" and "Program Header"."""

    table: struct.Struct
    table_at: int
    counts_at: int
    entry: struct.Struct
    flags: int
    """Index of the flags among an entry's fields; type, offset and size of the file part come from ``offset``."""
    offset: int
    size: int


_LAYOUTS: Final = {
    1: _Layout(struct.Struct("=I"), 28, 42, struct.Struct("=IIIIIII"), 6, 1, 4),
    2: _Layout(struct.Struct("=Q"), 32, 54, struct.Struct("=IIQQQQ"), 1, 2, 5),
}


def never_written(head: bytes) -> Sequence[FileRange]:
    """The loaded segments that are not writable, by their place in the file; ``head``: its first ``HEAD_BYTES``."""
    order = 1 if sys.byteorder == "little" else 2
    if len(head) < 64 or head[:4] != _MAGIC or head[5] != order or head[4] not in _LAYOUTS:
        return ()
    layout = _LAYOUTS[head[4]]
    (table,) = layout.table.unpack_from(head, layout.table_at)
    entry_bytes, count = struct.unpack_from("=HH", head, layout.counts_at)
    if entry_bytes < layout.entry.size or count > _MAX_HEADERS:
        return ()
    if table + entry_bytes * count > len(head):
        return ()
    found = []
    for number in range(count):
        fields = layout.entry.unpack_from(head, table + number * entry_bytes)
        if fields[0] == _PT_LOAD and not fields[layout.flags] & _PF_W:
            start = fields[layout.offset]
            found.append(FileRange(start, start + fields[layout.size]))
    return found
