"""A look at an ONNX file before onnxruntime sees it: what it would run and what else it would read.

Rules kept here:

- Only operators of known domains, or of functions that the file itself defines; no operator that wraps another
  engine's compiled form (``EPContext``).
- No data outside the file: ``external_data`` would have onnxruntime open a path that the model chose.
- The file is hostile: walked without recursion into anything but graphs, to a fixed depth, never copied. What is not
  well-formed protobuf is refused, not guessed at. The device needs no ``onnx`` package for this.

Field numbers are those of ``onnx/onnx.proto`` (kept for ever by ONNX's own rules).
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from agent.runtime.errors import ModelLoadError

__all__ = ["ALLOWED_DOMAINS", "scan_model"]

ALLOWED_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
FORBIDDEN_OPERATORS: Final = frozenset({"EPContext"})
MAX_DEPTH: Final = 32
"""Graphs inside graphs (branches and bodies of loops)."""

Buffer = mmap.mmap | bytes
_Span = tuple[int, int]

_MODEL_GRAPH, _MODEL_FUNCTIONS, _MODEL_TRAINING = 7, 25, 20
_FUNCTION_DOMAIN, _FUNCTION_NODE, _FUNCTION_ATTRIBUTE = 10, 7, 11
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_SPARSE_TENSORS = (1, 2)
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14


class _Malformed(Exception):
    """The bytes are not protobuf."""


@dataclass(slots=True)
class _Found:
    """Domains used, and the first thing that is forbidden."""

    domains: set[str] = field(default_factory=set)
    local_domains: set[str] = field(default_factory=set)
    problem: str = ""


def scan_model(file: BinaryIO, name: str) -> None:
    """Look through the ONNX file opened as ``file``; ``name`` is for messages.

    Raises:
        ModelLoadError: it is no ONNX file, or it would run or read what it may not; says which.
    """
    try:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _scan(data)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ModelLoadError(f"{name} cannot be read: {error}") from error
    except _Malformed as error:
        raise ModelLoadError(f"{name} is not an ONNX model: {error}") from error
    if found.problem:
        raise ModelLoadError(f"{name} {found.problem}")
    foreign = sorted(found.domains - found.local_domains - ALLOWED_DOMAINS)
    if foreign:
        raise ModelLoadError(
            f"{name} uses operators of the domain {foreign[0][:60]!r}; allowed are the domains "
            f"{', '.join(repr(domain) for domain in sorted(ALLOWED_DOMAINS))}"
        )


def _scan(data: Buffer) -> _Found:
    found = _Found()
    for number, span in _fields(data, (0, len(data))):
        if number == _MODEL_GRAPH:
            _scan_graph(data, span, found, 1)
        elif number == _MODEL_FUNCTIONS:
            _scan_function(data, span, found)
        elif number == _MODEL_TRAINING:
            found.problem = found.problem or "carries training steps; export it for inference"
    return found


def _scan_function(data: Buffer, span: _Span, found: _Found) -> None:
    for number, part in _fields(data, span):
        if number == _FUNCTION_NODE:
            _scan_node(data, part, found, 1)
        elif number == _FUNCTION_ATTRIBUTE:
            _scan_attribute(data, part, found, 1)
        elif number == _FUNCTION_DOMAIN:
            found.local_domains.add(_text(data, part))


def _scan_graph(data: Buffer, span: _Span, found: _Found, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _Malformed(f"graphs are nested more than {MAX_DEPTH} deep")
    for number, part in _fields(data, span):
        if number == _GRAPH_NODE:
            _scan_node(data, part, found, depth)
        elif number == _GRAPH_INITIALIZER:
            _scan_tensor(data, part, found)
        elif number == _GRAPH_SPARSE:
            _scan_sparse(data, part, found)


def _scan_node(data: Buffer, span: _Span, found: _Found, depth: int) -> None:
    found.domains.add("")
    for number, part in _fields(data, span):
        if number == _NODE_DOMAIN:
            found.domains.add(_text(data, part))
        elif number == _NODE_OPERATOR and _text(data, part) in FORBIDDEN_OPERATORS:
            found.problem = found.problem or f"uses the operator {_text(data, part)}"
        elif number == _NODE_ATTRIBUTE:
            _scan_attribute(data, part, found, depth)


def _scan_attribute(data: Buffer, span: _Span, found: _Found, depth: int) -> None:
    for number, part in _fields(data, span):
        if number in _ATTRIBUTE_GRAPHS:
            _scan_graph(data, part, found, depth + 1)
        elif number in _ATTRIBUTE_TENSORS:
            _scan_tensor(data, part, found)
        elif number in _ATTRIBUTE_SPARSE:
            _scan_sparse(data, part, found)


def _scan_sparse(data: Buffer, span: _Span, found: _Found) -> None:
    for number, part in _fields(data, span):
        if number in _SPARSE_TENSORS:
            _scan_tensor(data, part, found)


def _scan_tensor(data: Buffer, span: _Span, found: _Found) -> None:
    for number, part in _fields(data, span):
        if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and part[0] == -1 and part[1]):
            found.problem = found.problem or (
                "keeps tensors outside the file (external data); save it as one file"
            )


def _fields(data: Buffer, span: _Span) -> Iterator[tuple[int, _Span]]:
    """Field numbers with the span of their content; a number's span is (-1, its value)."""
    at, end = span
    if at < 0:
        raise _Malformed("a number where a message is expected")
    while at < end:
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
