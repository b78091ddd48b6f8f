"""Values and arrays as bytes, and back. Pure.

Rules kept here: one format with a version, a kind and a checksum, all checked on reading; what is read
back is equal to the bit, and writing it again gives the same bytes on every machine.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["Arrays", "pack", "unpack"]

_MAGIC: Final = b"MGATE"
_VERSION: Final = 1
_FRAME: Final = struct.Struct("<5sBII")  # magic, version, length of the header, CRC-32 of the rest
Arrays = dict[str, npt.NDArray[Any]]


def pack(kind: str, values: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """A header of JSON ``values``, then the arrays in the order of their names.

    Not compressed: two versions of a compressor write different bytes for the same values.
    """
    listed = []
    parts = []
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        listed.append([name, little.dtype.str, list(array.shape)])
        parts.append(little.tobytes())
    header = json.dumps(
        {"kind": kind, "values": values, "arrays": listed}, sort_keys=True, separators=(",", ":")
    ).encode()
    body = header + b"".join(parts)
    return _FRAME.pack(_MAGIC, _VERSION, len(header), zlib.crc32(body)) + body


def unpack(kind: str, data: bytes) -> tuple[dict[str, Any], Arrays]:
    """What ``pack`` was given.

    Raises:
        ValueError: not ours, of another version or kind, or damaged.
    """
    if len(data) < _FRAME.size:
        raise ValueError(f"a stored {kind} has at least {_FRAME.size} bytes, not {len(data)}")
    magic, version, length, crc = _FRAME.unpack_from(data)
    body = data[_FRAME.size :]
    if magic != _MAGIC or version != _VERSION:
        raise ValueError(
            f"this is no stored {kind} of version {_VERSION} (it begins with {data[:6]!r}): "
            "it was written by another version of the fleet manager"
        )
    if zlib.crc32(body) != crc:
        raise ValueError(f"the stored {kind} is damaged: its checksum is wrong")
    header = json.loads(body[:length])
    if header["kind"] != kind:
        raise ValueError(f"this is a stored {header['kind']}, not a {kind}")
    arrays: Arrays = {}
    at = length
    for name, dtype, shape in header["arrays"]:
        kind_of = np.dtype(dtype)
        size = int(np.prod(shape)) * kind_of.itemsize
        flat = np.frombuffer(body[at : at + size], dtype=kind_of)
        arrays[name] = flat.reshape(shape).astype(kind_of.newbyteorder("="))
        at += size
    return header["values"], arrays
