"""A look at an ONNX file before onnxruntime sees it: what it would run and what else it would read.

Rules kept here:

- Only operators of known domains, or of functions that the file itself defines; no operator that wraps another
  engine's compiled form (``EPContext``).
- No data outside the file: ``external_data`` would have onnxruntime open a path that the model chose.
- No tensor that claims more values than its bytes can hold, no more nodes and parts than a device has time for.
- The file is hostile: walked without recursion into anything but graphs, to a fixed depth, never copied. What is not
  well-formed protobuf is refused, not guessed at. The device needs no ``onnx`` package for this.
- What is allowed on no device is a ``ForbiddenModelError``; what is no ONNX model is named where it is known.

Field numbers are those of ``onnx/onnx.proto`` (kept for ever by ONNX's own rules).
"""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from agent.bundle import Manifest
from agent.bundle.folder import open_bundle_file
from agent.runtime.errors import ForbiddenModelError, ModelLoadError

__all__ = ["ALLOWED_DOMAINS", "ScanLimits", "scan_bundle", "scan_model"]

ALLOWED_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
FORBIDDEN_OPERATORS: Final = frozenset({"EPContext"})
VALUES_A_BYTE: Final = 8
"""No element type packs more."""
MAX_SIZES: Final = 64
"""Dimensions of a tensor; onnxruntime takes far fewer."""

Buffer = mmap.mmap | bytes
_Span = tuple[int, int]

_MODEL_GRAPH, _MODEL_FUNCTIONS, _MODEL_TRAINING = 7, 25, 20
_FUNCTION_DOMAIN, _FUNCTION_NODE, _FUNCTION_ATTRIBUTE = 10, 7, 11
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_SPARSE_TENSORS, _SPARSE_SIZES = (1, 2), 3
_TENSOR_SIZES, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 13, 14


# (where the mark begins, the mark, what the file is)
_OTHER_KINDS: Final = (
    (4, b"ORTM", "an .ort file, a model compiled by one onnxruntime"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"PK\x03\x04", "a zip archive (npz, pt, keras)"),
    (0, b"\x80\x02", "a Python pickle"),
    (0, b"\x80\x03", "a Python pickle"),
    (0, b"\x80\x04", "a Python pickle"),
    (0, b"\x80\x05", "a Python pickle"),
    (0, b"\x93NUMPY", "a NumPy array file"),
    (0, b"\x89HDF", "an HDF5 file (h5, keras)"),
    (0, b"\x7fELF", "a native library or program"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"#!", "a script"),
)


@dataclass(frozen=True, slots=True)
class ScanLimits:
    """How much a model file may hold. ``max_parts``: fields that are looked at, of all its messages together."""

    max_depth: int = 32
    """Graphs inside graphs (branches and bodies of loops)."""
    max_nodes: int = 200_000
    max_parts: int = 50_000_000
    max_sparse_values: int = 1 << 31
    """Of a sparse tensor once it is written out, which loading it does."""


class _Malformed(Exception):
    """The bytes are not protobuf."""


class _TooMuch(Exception):
    """More than a limit allows; says of what."""


@dataclass(slots=True)
class _Found:
    """Domains used, the first thing that is forbidden, and how much of the limits is used up."""

    limits: ScanLimits = field(default_factory=ScanLimits)
    nodes: int = 0
    parts: int = 0
    domains: set[str] = field(default_factory=set)
    local_domains: set[str] = field(default_factory=set)
    problem: str = ""


def scan_bundle(folder: str | Path, manifest: Manifest, limits: ScanLimits | None = None) -> None:
    """Look through the model of every stage of the bundle in ``folder``.

    Raises:
        ModelLoadError, ForbiddenModelError: as ``scan_model``. BundleFileError: a file is not what it should be.
    """
    for stage in manifest.stages:
        with open_bundle_file(folder, stage.file) as file:
            scan_model(file, stage.file, limits)


def scan_model(file: BinaryIO, name: str, limits: ScanLimits | None = None) -> None:
    """Look through the ONNX file opened as ``file``; ``name`` is for messages.

    Raises:
        ForbiddenModelError: it would run or read what it may not, or holds more than a device looks at; says which.
        ModelLoadError: it is no ONNX file.
    """
    try:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _refuse_other_kinds(data, name)
            found = _scan(data, limits)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ModelLoadError(f"{name} cannot be read: {error}") from error
    except _Malformed as error:
        raise ModelLoadError(f"{name} is not an ONNX model: {error}") from error
    except _TooMuch as error:
        raise ForbiddenModelError(f"{name} {error}") from error
    if found.problem:
        raise ForbiddenModelError(f"{name} {found.problem}")
    foreign = sorted(found.domains - found.local_domains - ALLOWED_DOMAINS)
    if foreign:
        raise ForbiddenModelError(
            f"{name} uses operators of the domain {foreign[0][:60]!r}; allowed are the domains "
            f"{', '.join(repr(domain) for domain in sorted(ALLOWED_DOMAINS))}"
        )


def _refuse_other_kinds(data: Buffer, name: str) -> None:
    for at, mark, kind in _OTHER_KINDS:
        if data[at : at + len(mark)] == mark:
            raise ForbiddenModelError(
                f"{name} is {kind}; a stage is an ONNX model and nothing else: export it as .onnx"
            )


def _scan(data: Buffer, limits: ScanLimits | None = None) -> _Found:
    found = _Found(limits or ScanLimits())
    for number, span in _fields(data, (0, len(data)), found):
        if number == _MODEL_GRAPH:
            _scan_graph(data, span, found, 1)
        elif number == _MODEL_FUNCTIONS:
            _scan_function(data, span, found)
        elif number == _MODEL_TRAINING:
            found.problem = found.problem or "carries training steps; export it for inference"
    return found


def _scan_function(data: Buffer, span: _Span, found: _Found) -> None:
    for number, part in _fields(data, span, found):
        if number == _FUNCTION_NODE:
            _scan_node(data, part, found, 1)
        elif number == _FUNCTION_ATTRIBUTE:
            _scan_attribute(data, part, found, 1)
        elif number == _FUNCTION_DOMAIN:
            found.local_domains.add(_text(data, part))


def _scan_graph(data: Buffer, span: _Span, found: _Found, depth: int) -> None:
    if depth > found.limits.max_depth:
        raise _TooMuch(f"has graphs nested more than {found.limits.max_depth} deep")
    for number, part in _fields(data, span, found):
        if number == _GRAPH_NODE:
            _scan_node(data, part, found, depth)
        elif number == _GRAPH_INITIALIZER:
            _scan_tensor(data, part, found)
        elif number == _GRAPH_SPARSE:
            _scan_sparse(data, part, found)


def _scan_node(data: Buffer, span: _Span, found: _Found, depth: int) -> None:
    found.domains.add("")
    found.nodes += 1
    if found.nodes > found.limits.max_nodes:
        raise _TooMuch(f"has more than {found.limits.max_nodes} nodes")
    for number, part in _fields(data, span, found):
        if number == _NODE_DOMAIN:
            found.domains.add(_text(data, part))
        elif number == _NODE_OPERATOR and _text(data, part) in FORBIDDEN_OPERATORS:
            found.problem = found.problem or f"uses the operator {_text(data, part)}"
        elif number == _NODE_ATTRIBUTE:
            _scan_attribute(data, part, found, depth)


def _scan_attribute(data: Buffer, span: _Span, found: _Found, depth: int) -> None:
    for number, part in _fields(data, span, found):
        if number in _ATTRIBUTE_GRAPHS:
            _scan_graph(data, part, found, depth + 1)
        elif number in _ATTRIBUTE_TENSORS:
            _scan_tensor(data, part, found)
        elif number in _ATTRIBUTE_SPARSE:
            _scan_sparse(data, part, found)


def _scan_sparse(data: Buffer, span: _Span, found: _Found) -> None:
    sizes: list[int] = []
    for number, part in _fields(data, span, found):
        if number in _SPARSE_TENSORS:
            _scan_tensor(data, part, found)
        elif number == _SPARSE_SIZES:
            _add_sizes(data, part, sizes)
    if math.prod(sizes) > found.limits.max_sparse_values:
        found.problem = found.problem or (
            f"has a sparse tensor of {_count(sizes)} values when written out, "
            f"at most {found.limits.max_sparse_values} are allowed"
        )


def _scan_tensor(data: Buffer, span: _Span, found: _Found) -> None:
    sizes: list[int] = []
    for number, part in _fields(data, span, found):
        if number == _TENSOR_SIZES:
            _add_sizes(data, part, sizes)
        elif number == _TENSOR_EXTERNAL or (
            number == _TENSOR_LOCATION and part[0] == -1 and part[1]
        ):
            found.problem = found.problem or (
                "keeps tensors outside the file (external data); save it as one file"
            )
    size_bytes = span[1] - span[0]
    if math.prod(sizes) > VALUES_A_BYTE * size_bytes:
        found.problem = found.problem or (
            f"has a tensor that claims {_count(sizes)} values in {size_bytes} bytes; export it again"
        )


def _count(sizes: list[int]) -> str:
    """Of values, for a message: sizes from a hostile file may multiply to a number of any length."""
    total = math.prod(sizes)
    return str(total) if total < 1 << 63 else "more than 2^63"


def _add_sizes(data: Buffer, span: _Span, sizes: list[int]) -> None:
    """One dimension, or as many as are packed into the span."""
    at, end = span
    if at < 0:
        sizes.append(end)
    while 0 <= at < end and len(sizes) <= MAX_SIZES:
        value, at = _varint(data, at, end)
        sizes.append(value)
    if len(sizes) > MAX_SIZES:
        raise _TooMuch(f"has a tensor of more than {MAX_SIZES} dimensions")


def _fields(data: Buffer, span: _Span, found: _Found) -> Iterator[tuple[int, _Span]]:
    """Field numbers with the span of their content; a number's span is (-1, its value)."""
    at, end = span
    if at < 0:
        raise _Malformed("a number where a message is expected")
    while at < end:
        found.parts += 1
        if found.parts > found.limits.max_parts:
            raise _TooMuch(f"has more than {found.limits.max_parts} parts")
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at, end)
            yield number, (-1, value)
            continue
        if wire == 2:
            size, at = _varint(data, at, end)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:  # groups: no part of ONNX has them
            raise _Malformed(f"wire type {wire} at byte {at}")
        if at + size > end:
            raise _Malformed(f"a field at byte {at} is longer than its message")
        yield number, (at, at + size)
        at += size


def _varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _Malformed(f"a number at byte {at} does not end")


def _text(data: Buffer, span: _Span) -> str:
    if span[0] < 0:
        raise _Malformed("a number where text is expected")
    return data[span[0] : span[1]].decode("utf-8", "replace")
