"""gRPC over HTTP/2 as bytes and fields: heads of calls, messages with their prefix, statuses, deadlines.

By the protocol's own description ("gRPC over HTTP2"). Rules kept here:

- A request may come packed with gzip or deflate, unpacked to the same bound; answers never are.
- A message's announced size is checked before more of it is kept than one frame.
"""

import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from agent.serving.http2.errors import CallRefusedError
from agent.serving.http2.headers import Fields, literal, status
from agent.serving.service import Method
from agent.serving.status import Code

__all__ = [
    "ANSWER_HEAD",
    "OK_TRAILERS",
    "CallHead",
    "MessageReader",
    "prefixed",
    "read_head",
    "refusal",
    "trailers",
    "whole_message",
]

Buffer = bytes | bytearray

MAX_TEXT_CHARS: Final = 1024
"""Of a status."""
ENCODINGS: Final[Mapping[str, int]] = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_PREFIX: Final = struct.Struct(">BI")
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_CONTENT_TYPE: Final = b"\x0f\x10" + b"\x10application/grpc"
_PLAIN_TEXT: Final = b"\x0f\x10" + b"\x0atext/plain"

ANSWER_HEAD: Final = status(200) + _CONTENT_TYPE
"""The header block before an answer."""
OK_TRAILERS: Final = literal(b"grpc-status", b"0")
"""The header block after it."""


@dataclass(frozen=True, slots=True)
class CallHead:
    """What a request's fields say. Where ``refusal`` is, it is the whole answer, a header block."""

    method: Method | None
    timeout_s: float | None = None
    encoding: str = ""
    length: int | None = None
    refusal: bytes = b""


def read_head(fields: Fields, methods: Mapping[str, Method]) -> CallHead:
    """The call that the fields ask for, or its refusal."""
    said = dict(fields)
    length = _length(said.get(b"content-length"))
    if said[b":method"] != b"POST":
        return CallHead(None, length=length, refusal=_not_grpc(405))
    content_type = said.get(b"content-type", b"").lower()
    if content_type.partition(b";")[0].strip() not in (
        b"application/grpc",
        b"application/grpc+proto",
    ):
        return CallHead(None, length=length, refusal=_not_grpc(415))
    path = said[b":path"].decode("latin-1")
    method = methods.get(path)
    if method is None:
        text = f"there is no method {path[:200]!r} here"
        return CallHead(None, length=length, refusal=refusal(Code.UNIMPLEMENTED, text))
    encoding = said.get(b"grpc-encoding", b"identity").decode("latin-1")
    if encoding == "identity":
        encoding = ""
    elif encoding not in ENCODINGS:
        text = f"grpc-encoding {encoding[:40]!r} is not understood: use identity, gzip or deflate"
        accepted = literal(b"grpc-accept-encoding", b"identity,gzip,deflate")
        block = refusal(Code.UNIMPLEMENTED, text) + accepted
        return CallHead(None, length=length, refusal=block)
    try:
        timeout_s = _timeout_s(said.get(b"grpc-timeout"))
    except CallRefusedError as error:
        return CallHead(None, length=length, refusal=refusal(error.code, str(error)))
    return CallHead(method, timeout_s, encoding, length)


def _timeout_s(raw: bytes | None) -> float | None:
    if raw is None:
        return None
    found = _TIMEOUT.fullmatch(raw)
    if found is None:
        raise CallRefusedError(
            Code.INVALID_ARGUMENT, f"grpc-timeout {raw[:20].decode('latin-1')!r} is no time"
        )
    return int(found[1]) * _UNIT_S[found[2]]


def _length(raw: bytes | None) -> int | None:
    return int(raw) if raw is not None and raw.isdigit() and len(raw) <= 18 else None


def _not_grpc(number: int) -> bytes:
    return status(number) + _PLAIN_TEXT


def refusal(code: Code, text: str) -> bytes:
    """The block that is a whole answer: head and trailers in one."""
    return ANSWER_HEAD + trailers(code, text)


def trailers(code: Code, text: str) -> bytes:
    """The block that ends an answer. ``text`` is percent-encoded as gRPC wants it."""
    block = literal(b"grpc-status", str(int(code)).encode())
    return (
        block + literal(b"grpc-message", _percent_encoded(text[:MAX_TEXT_CHARS])) if text else block
    )


def _percent_encoded(text: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in raw
    )


def prefixed(size: int) -> bytes:
    """What goes before a message of this size."""
    return _PREFIX.pack(0, size)


def whole_message(data: bytes) -> bytes | None:
    """The message that ``data`` is, not packed; None where it is less, more or something else."""
    if len(data) < _PREFIX.size:
        return None
    flag, size = _PREFIX.unpack_from(data)
    return data[_PREFIX.size :] if size == len(data) - _PREFIX.size and not flag else None


class MessageReader:
    """Keeps the body of one call and cuts it into messages. ``take`` is told of every byte that is kept more, or less
    with a negative number, and may raise; a message that was cut off is its user's to give back."""

    __slots__ = ("_buffer", "_encoding", "_max_bytes", "_take")

    def __init__(self, max_bytes: int, encoding: str, take: Callable[[int], None]) -> None:
        self._max_bytes = max_bytes
        self._encoding = encoding
        self._take = take
        self._buffer = bytearray()

    @property
    def kept_bytes(self) -> int:
        """Of what is not cut off yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Keep a part of the body. Raises CallRefusedError where there is no room."""
        self._take(len(data))
        self._buffer += data

    def is_whole(self) -> bool:
        """Whether ``next`` has a message.

        Raises:
            CallRefusedError: the message that comes is too large.
        """
        if len(self._buffer) < _PREFIX.size:
            return False
        size: int = _PREFIX.unpack_from(self._buffer)[1]
        if size > self._max_bytes:
            raise CallRefusedError(
                Code.RESOURCE_EXHAUSTED,
                f"a message of {size} bytes came, at most {self._max_bytes} are taken",
            )
        return len(self._buffer) - _PREFIX.size >= size

    def next(self) -> Buffer | None:
        """The next message, None as long as it is not whole.

        Raises:
            CallRefusedError: it is too large or packed wrongly.
        """
        if not self.is_whole():
            return None
        flag, size = _PREFIX.unpack_from(self._buffer)
        end = _PREFIX.size + size
        self._take(-_PREFIX.size)
        message: Buffer
        if end == len(self._buffer):  # mostly: then it is not copied
            message, self._buffer = self._buffer, bytearray()
            del message[: _PREFIX.size]
        else:
            message = bytes(self._buffer[_PREFIX.size : end])
            del self._buffer[:end]
        if not flag:
            return message
        self._take(-size)
        if flag != 1 or not self._encoding:
            raise CallRefusedError(
                Code.INTERNAL, f"a message has the flag {flag}, and the call says no grpc-encoding"
            )
        unpacked = _unpacked(message, self._encoding, self._max_bytes)
        self._take(len(unpacked))
        return unpacked


def _unpacked(message: Buffer, encoding: str, most: int) -> bytes:
    unpacker = zlib.decompressobj(ENCODINGS[encoding])
    try:
        data = unpacker.decompress(message, most + 1)
    except zlib.error as error:
        raise CallRefusedError(Code.INTERNAL, f"a message is not {encoding}: {error}") from error
    if len(data) > most:
        raise CallRefusedError(
            Code.RESOURCE_EXHAUSTED, f"a message is larger than the {most} bytes that are taken"
        )
    if not unpacker.eof or unpacker.unused_data:
        raise CallRefusedError(Code.INTERNAL, f"a message is not one whole {encoding} stream")
    return data
