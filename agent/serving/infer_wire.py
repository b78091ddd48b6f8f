"""``ModelInferRequest`` and ``ModelInferResponse`` as bytes, for the requests that nearly everybody sends.

The generated classes take a copy of every tensor and an object for every field. Here a request is walked once: tensors
stay where they came, and the descriptions of the inputs, which a client sends again and again, are looked up.

Rules kept here:

- Read here: names, data types, shapes, raw contents, and typed contents of FP32 and FP64. ``read_wire`` returns None
  for everything else (parameters, other contents, unknown fields, bytes that are no message): then the generated
  classes read it, and say what is wrong with it.
- What is refused, and in which words, is the same as in ``agent.serving.codec``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from agent.runtime.dtypes import MAX_DIMENSIONS, NUMPY_OF, Array, dtype_of, from_raw, to_raw
from agent.runtime.errors import InputContractError
from agent.serving.codec import TYPED_CONTENTS, encode_answer
from agent.serving.protocol import MAX_INPUTS, Answer, Parameter
from agent.serving.values import check_count, check_name

__all__ = ["MAX_FIELDS", "WireRequest", "length_prefixed", "read_wire"]

Buffer = bytes | bytearray

MAX_REMEMBERED_BYTES: Final = 256
"""Descriptions up to this size are looked up; longer ones are read each time."""
MAX_FIELDS: Final = 4096
"""Of one message, not counting what is in them."""
COPY_BELOW_BYTES: Final = 1 << 14
"""Smaller arrays are copied twice rather than looked at through a view."""
_MAX_VARINT_BYTES: Final = 10
_MAX_SHAPE_BYTES: Final = MAX_DIMENSIONS * _MAX_VARINT_BYTES
_NO_PARAMETERS: Final[Mapping[str, Parameter]] = {}

# Tags: the field's number times eight, and 2 for what has a length.
_MODEL, _VERSION, _ID, _INPUT, _OUTPUT, _RAW = 0x0A, 0x12, 0x1A, 0x2A, 0x32, 0x3A
_NAME, _DATATYPE, _SHAPE, _CONTENTS = 0x0A, 0x12, 0x1A, 0x2A
_RAW_OUTPUT: Final = b"\x32"
_TYPED: Final = {0x32: ("FP32", NUMPY_OF["FP32"]), 0x3A: ("FP64", NUMPY_OF["FP64"])}
_TYPED_TAG: Final = {dtype: bytes([tag]) for tag, (dtype, _) in _TYPED.items()}


class _Input(NamedTuple):
    """What describes an input; ``contents`` is where in it the packed typed values are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    contents: tuple[int, int] | None = None


class _UnusualError(Exception):
    """For the generated classes."""


@dataclass(slots=True)
class WireRequest:
    """One request, not copied out of ``message``. The same to its users as ``codec.MessageRequest``."""

    message: Buffer
    model: str
    version: str
    id: str
    inputs: Sequence[_Input]
    outputs: Sequence[str]
    raw: Sequence[tuple[int, int]]
    """Where each raw content begins and ends."""
    parameters: Mapping[str, Parameter]
    servable_sha256: str = ""
    """Who answered, once it is encoded."""

    def decode(self) -> dict[str, Array]:
        """The inputs by name; read-only views where the bytes lie as the processor wants them.

        Raises:
            InputContractError: names, types, shapes and bytes do not fit together.
        """
        inputs, raw = self.inputs, self.raw
        if len(inputs) > MAX_INPUTS:
            raise InputContractError(
                f"{len(inputs)} inputs are more than the {MAX_INPUTS} that are taken"
            )
        if raw and len(raw) != len(inputs):
            raise InputContractError(
                f"{len(inputs)} inputs came with {len(raw)} raw contents; there must be one for each"
            )
        view = memoryview(self.message)
        arrays: dict[str, Array] = {}
        for number, tensor in enumerate(inputs):
            name = check_name(tensor.name, "input")
            if name in arrays:
                raise InputContractError(f"input {name!r} came twice")
            if not raw:
                arrays[name] = _from_contents(tensor, view)
                continue
            if tensor.contents is not None:
                raise InputContractError(
                    f"input {name!r} came raw and as typed contents; use one of them"
                )
            begin, end = raw[number]
            arrays[name] = _from_raw(view[begin:end], tensor)
        return arrays

    def encode(self, answer: Answer) -> bytes:
        """The answer as bytes of a ``ModelInferResponse``: raw, or typed where the request came so."""
        self.servable_sha256 = answer.servable_sha256
        arrays = answer.arrays
        chosen = [(name, arrays[name]) for name in answer.names]
        parts: list[bytes | memoryview] = [_head(answer.manifest.model, answer.manifest.version)]
        if self.id:
            parts.append(b"\x1a" + length_prefixed(self.id.encode()))
        if not self.raw:
            dtypes = [dtype_of(array) for _, array in chosen]
            if all(dtype in _TYPED_TAG for dtype in dtypes):
                parts += [_typed(name, array) for name, array in chosen]
                return b"".join(parts)
            if all(dtype in TYPED_CONTENTS for dtype in dtypes):
                return bytes(encode_answer(answer, self.id, raw=False).SerializeToString())
        parts += [_described(name, dtype_of(array), array.shape) for name, array in chosen]
        for _, array in chosen:
            raw = _raw_of(array)
            parts += (_RAW_OUTPUT, _varint(len(raw)), raw)
        return b"".join(parts)


def read_wire(message: Buffer) -> WireRequest | None:
    """The request in ``message``; None: it is unusual or broken, which the generated classes find out."""
    try:
        return _read(message)
    except (_UnusualError, IndexError, UnicodeDecodeError):  # for whoever reads it next
        return None


def length_prefixed(data: bytes) -> bytes:
    """``data`` after its length, as a field's value."""
    return _varint(len(data)) + data


def _read(message: Buffer) -> WireRequest:
    model = version = request_id = ""
    inputs: list[_Input] = []
    outputs: list[str] = []
    raw: list[tuple[int, int]] = []
    at, end = 0, len(message)
    for _ in range(MAX_FIELDS):
        if at >= end:
            break
        tag, begin, stop = _field(message, at, end)
        if tag == _RAW:
            raw.append((begin, stop))
        elif tag == _INPUT:
            inputs.append(_input(message, begin, stop))
        elif tag == _MODEL:
            model = _text(message, begin, stop)
        elif tag == _OUTPUT:
            outputs.append(_output(bytes(message[begin:stop])))
        elif tag == _ID:
            request_id = _text(message, begin, stop)
        elif tag == _VERSION:
            version = _text(message, begin, stop)
        else:
            raise _UnusualError
        at = stop
    if at < end:
        raise _UnusualError
    return WireRequest(message, model, version, request_id, inputs, outputs, raw, _NO_PARAMETERS)


def _field(message: Buffer, at: int, end: int) -> tuple[int, int, int]:
    """Tag of a field that has a length, and where its value begins and ends. Raises _UnusualError."""
    tag, size = message[at], message[at + 1]
    at += 2
    if size >= 0x80:
        size, at = _number(message, at - 1, end)
    stop = at + size
    if stop > end:
        raise _UnusualError
    return tag, at, stop


def _number(message: Buffer, at: int, end: int) -> tuple[int, int]:
    """The varint at ``at``, and where it ends. Raises _UnusualError, also when it is longer than any is written."""
    value = shift = 0
    for position in range(at, min(at + _MAX_VARINT_BYTES, end)):
        byte = message[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                raise _UnusualError
            return value, position + 1
        shift += 7
    raise _UnusualError


def _text(message: Buffer, begin: int, stop: int) -> str:
    return str(message[begin:stop], "utf-8")


def _input(message: Buffer, begin: int, stop: int) -> _Input:
    if stop - begin <= MAX_REMEMBERED_BYTES:
        found = _remembered_input(bytes(message[begin:stop]))
        if found.contents is None:
            return found
    return _read_input(message, begin, stop)


@lru_cache(maxsize=512)
def _remembered_input(described: bytes) -> _Input:
    return _read_input(described, 0, len(described))


def _read_input(message: Buffer, at: int, end: int) -> _Input:
    name = dtype = ""
    shape: tuple[int, ...] = ()
    contents: tuple[int, int] | None = None
    while at < end:
        tag, begin, stop = _field(message, at, end)
        if tag == _NAME:
            name = _text(message, begin, stop)
        elif tag == _DATATYPE:
            dtype = _text(message, begin, stop)
        elif tag == _SHAPE and not shape and stop - begin <= _MAX_SHAPE_BYTES:
            shape = _sizes(message, begin, stop)
        elif tag == _CONTENTS and contents is None:
            contents = begin, stop
        else:
            raise _UnusualError
        at = stop
    if contents is None:
        return _Input(name, dtype, shape)
    begin, stop = contents
    if begin == stop:
        raise _UnusualError
    tag, begin, inner = _field(message, begin, stop)
    typed = _TYPED.get(tag)
    if inner != stop or typed is None or typed[0] != dtype or (stop - begin) % typed[1].itemsize:
        raise _UnusualError
    return _Input(name, dtype, shape, (begin, stop))


def _sizes(message: Buffer, at: int, end: int) -> tuple[int, ...]:
    sizes = []
    while at < end:
        value, at = _number(message, at, end)
        sizes.append(value if value < 1 << 63 else value - (1 << 64))
    return tuple(sizes)


@lru_cache(maxsize=512)
def _output(described: bytes) -> str:
    """The name of an output that is asked for."""
    name, at = "", 0
    while at < len(described):
        tag, begin, at = _field(described, at, len(described))
        if tag != _NAME:
            raise _UnusualError
        name = _text(described, begin, at)
    return name


def _from_raw(data: memoryview, tensor: _Input) -> Array:
    if tensor.dtype == "BYTES":
        return from_raw(bytes(data), tensor.dtype, tensor.shape, tensor.name)
    array = from_raw(data, tensor.dtype, tensor.shape, tensor.name)  # type: ignore[arg-type]  # read like bytes
    # What comes before it has any length; native code wants numbers where the processor does.
    return array if array.flags.aligned else array.copy()


def _from_contents(tensor: _Input, view: memoryview) -> Array:
    name, dtype, shape = tensor.name, tensor.dtype, tensor.shape
    if tensor.contents is None:
        field = TYPED_CONTENTS.get(dtype)
        if field is None:
            raise InputContractError(
                f"tensor {name!r}: data type {dtype[:40]!r} has no typed contents; send it raw"
            )
        check_count(0, shape, name, field)
        return from_raw(b"", dtype, shape, name)
    begin, end = tensor.contents
    count = (end - begin) // NUMPY_OF[dtype].itemsize
    check_count(count, shape, name, TYPED_CONTENTS[dtype])
    return _from_raw(view[begin:end], tensor)


# --- answers --------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _head(model: str, version: str) -> bytes:
    named = b"\x0a" + length_prefixed(model.encode())
    return named + (b"\x12" + length_prefixed(version.encode()) if version else b"")


@lru_cache(maxsize=1024)
def _described(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    """An output without its contents, as a field of the response."""
    return b"\x2a" + length_prefixed(_tensor(name, dtype, shape))


def _tensor(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    sizes = b"".join(map(_varint, shape))
    return b"".join(
        (
            b"\x0a" + length_prefixed(name.encode()),
            b"\x12" + length_prefixed(dtype.encode()),
            b"\x1a" + length_prefixed(sizes) if sizes else b"",
        )
    )


def _typed(name: str, array: Array) -> bytes:
    """An FP32 or FP64 output with its values, as a field of the response."""
    dtype = dtype_of(array)
    values = b""
    if array.size:
        values = _TYPED_TAG[dtype] + length_prefixed(array.tobytes())
    contents = b"\x2a" + length_prefixed(values)
    return b"\x2a" + length_prefixed(_tensor(name, dtype, array.shape) + contents)


def _raw_of(array: Array) -> bytes | memoryview:
    if array.nbytes < COPY_BELOW_BYTES or array.dtype.kind in "OUS" or not array.flags.c_contiguous:
        return to_raw(array)
    return array.reshape(math.prod(array.shape)).data.cast("B")


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)
