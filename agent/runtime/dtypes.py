"""The data types of the Open Inference Protocol as numpy, onnxruntime and raw bytes know them.

Rules kept here:

- Raw bytes are little-endian; each element of BYTES follows its length as a little-endian uint32.
- In arrays, BYTES is text: an object array of ``str``. ONNX strings are UTF-8, so other bytes are
  refused.
- Sizes are checked before anything is allocated: an array never holds more than its bytes.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from agent.runtime.errors import InputContractError

__all__ = ["MAX_DIMENSIONS", "NUMPY_OF", "Array", "check_rank", "dtype_of", "dtype_of_onnx", "from_raw", "text_array",
           "to_raw"]  # fmt: skip

Array = npt.NDArray[Any]

MAX_DIMENSIONS: Final = 32
"""What every numpy that is supported can hold; a bundle's tensors have 16 at most."""

NUMPY_OF: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
_NAME_OF: Final = {dtype: name for name, dtype in NUMPY_OF.items()}
_ONNX: Final[Mapping[str, str]] = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float": "FP32", "double": "FP64", "string": "BYTES",
}  # fmt: skip


def dtype_of(array: Array) -> str:
    """The protocol's name of an array's type; numpy's own name when the protocol has none."""
    name = _NAME_OF.get(array.dtype)
    if name is None and array.dtype.kind in "US":
        return "BYTES"
    return name or str(array.dtype)


def dtype_of_onnx(onnx_type: str) -> str | None:
    """``tensor(float)`` -> ``FP32``; None for what is not a tensor or has no name in the
    protocol."""
    if not onnx_type.startswith("tensor("):
        return None
    return _ONNX.get(onnx_type[len("tensor(") : -1])


def check_rank(shape: Sequence[int], name: str) -> None:
    """Refuse a shape before anything is done with it that takes longer the more dimensions it has.

    Raises:
        InputContractError: it has more than ``MAX_DIMENSIONS``.
    """
    if len(shape) > MAX_DIMENSIONS:
        raise InputContractError(
            f"tensor {name!r} has more than {MAX_DIMENSIONS} dimensions: {len(shape)}"
        )


def text_array(values: Sequence[bytes], shape: Sequence[int], name: str) -> Array:
    """BYTES elements as an object array of ``str``.

    Raises:
        InputContractError: an element is not UTF-8.
    """
    array = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        try:
            array[i] = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputContractError(f"tensor {name!r}: element {i} is not UTF-8 text") from error
    return array.reshape(shape)


def from_raw(raw: bytes, dtype: str, shape: Sequence[int], name: str) -> Array:
    """The array in ``raw``; read-only and without a copy except for BYTES.

    Raises:
        InputContractError: the data type is unknown, or the bytes do not make up the shape.
    """
    numpy_dtype = NUMPY_OF.get(dtype)
    if numpy_dtype is None:
        raise InputContractError(
            f"tensor {name!r}: data type {dtype[:40]!r} is unknown; known are {', '.join(NUMPY_OF)}"
        )
    check_rank(shape, name)
    if any(dim < 0 for dim in shape):
        raise InputContractError(f"tensor {name!r}: shape {list(shape)} has a negative dimension")
    count = math.prod(shape)
    if dtype == "BYTES":
        return text_array(_split(raw, count, name), shape, name)
    expected = count * numpy_dtype.itemsize
    if len(raw) != expected:
        raise InputContractError(
            f"tensor {name!r}: {dtype} of shape {list(shape)} takes {expected} bytes, got {len(raw)}"
        )
    return np.frombuffer(raw, dtype=numpy_dtype).reshape(shape)


def _split(raw: bytes, count: int, name: str) -> list[bytes]:
    """The ``count`` length-prefixed elements that make up ``raw`` exactly."""
    values: list[bytes] = []
    at = 0
    while at < len(raw) and len(values) < count:
        if at + 4 > len(raw):
            break
        (size,) = struct.unpack_from("<I", raw, at)
        if at + 4 + size > len(raw):
            break
        values.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    if at != len(raw) or len(values) != count:
        raise InputContractError(
            f"tensor {name!r}: {len(raw)} bytes do not hold exactly {count} length-prefixed elements"
        )
    return values


def to_raw(array: Array) -> bytes:
    """The array's bytes, little-endian; BYTES elements with their lengths."""
    if array.dtype.kind in "OUS":
        parts: list[bytes] = []
        for value in array.reshape(-1):
            data = value if isinstance(value, bytes) else str(value).encode()
            parts += (struct.pack("<I", len(data)), data)
        return b"".join(parts)
    return array.tobytes()
