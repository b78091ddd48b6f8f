"""HTTP/2 frames as bytes, both ways (RFC 9113, sections 4 and 6). Pure: no state but the bytes of a frame that is not
whole yet.

Rules kept here:

- A frame that is longer than allowed is refused by its head, before it is in memory.
- What one frame alone can have wrong (length, stream, padding) is found here; what depends on the connection is not.
"""

import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Final, NamedTuple

from agent.serving.http2.errors import ConnectionBrokenError, ErrorCode, StreamBrokenError

__all__ = [
    "ACK",
    "END_HEADERS",
    "END_STREAM",
    "HEAD_BYTES",
    "MAX_WINDOW",
    "PREFACE",
    "Frame",
    "FrameReader",
    "Kind",
    "Setting",
    "data_of",
    "frame",
    "frame_head",
    "goaway",
    "header_block_of",
    "increment_of",
    "reset",
    "settings",
    "settings_of",
    "window_update",
]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9
MAX_WINDOW: Final = (1 << 31) - 1
DEFAULT_FRAME_BYTES: Final = 1 << 14

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY: Final = 0x20

_HEAD: Final = struct.Struct(">IBI")  # length and kind, flags, stream
_SETTING: Final = struct.Struct(">HI")


class Kind(IntEnum):
    """RFC 9113, section 6."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Setting(IntEnum):
    """RFC 9113, section 6.5.2."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Frame(NamedTuple):
    """One frame; ``kind`` may be one that nobody knows."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


class FrameReader:
    """Cuts a stream of bytes into frames of at most ``max_bytes`` of payload."""

    __slots__ = ("_max_bytes", "_rest")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now. To be used up before the next call.

        Raises:
            ConnectionBrokenError: a frame is longer than allowed.
        """
        source: bytes | bytearray = data
        if self._rest:
            self._rest += data
            source = self._rest
        at, size = 0, len(source)
        while size - at >= HEAD_BYTES:
            length, flags, stream_id = _HEAD.unpack_from(source, at)
            kind = length & 0xFF
            length >>= 8
            if length > self._max_bytes:
                raise ConnectionBrokenError(
                    ErrorCode.FRAME_SIZE_ERROR,
                    f"a frame of {length} bytes came, at most {self._max_bytes} are taken",
                )
            begin = at + HEAD_BYTES
            end = begin + length
            if end > size:
                break
            at = end
            if source is data:
                payload = data[begin:end]
            else:
                with memoryview(source) as view:  # a slice of the bytearray would be one copy more
                    payload = bytes(view[begin:end])
            yield Frame(kind, flags, stream_id & MAX_WINDOW, payload)
        if source is data:
            if at < size:
                self._rest += data[at:]
        else:
            del self._rest[:at]


# --- what is in a frame ---------------------------------------------------------------------------


def data_of(frame: Frame) -> bytes:
    """The payload of DATA without its padding. Raises ConnectionBrokenError."""
    return _unpadded(frame) if frame.flags & PADDED else frame.payload


def header_block_of(frame: Frame) -> bytes:
    """The part of a header block in HEADERS, without padding and priority. Raises ConnectionBrokenError."""
    block = _unpadded(frame) if frame.flags & PADDED else frame.payload
    if not frame.flags & PRIORITY:
        return block
    if len(block) < 5:
        raise _wrong_size(frame)
    return block[5:]


def settings_of(frame: Frame, most: int) -> list[tuple[int, int]]:
    """Identifiers and values of SETTINGS. Raises ConnectionBrokenError."""
    if frame.flags & ACK:
        if frame.payload:
            raise _wrong_size(frame)
        return []
    count, rest = divmod(len(frame.payload), _SETTING.size)
    if rest:
        raise _wrong_size(frame)
    if count > most:
        raise ConnectionBrokenError(
            ErrorCode.ENHANCE_YOUR_CALM, f"SETTINGS with {count} entries, at most {most} are taken"
        )
    return list(_SETTING.iter_unpack(frame.payload))


def increment_of(frame: Frame) -> int:
    """Of WINDOW_UPDATE. Raises ConnectionBrokenError, for a stream's StreamBrokenError."""
    if len(frame.payload) != 4:
        raise _wrong_size(frame)
    increment = int.from_bytes(frame.payload, "big") & MAX_WINDOW
    if increment == 0:
        text = "WINDOW_UPDATE by nothing"
        if frame.stream_id:
            raise StreamBrokenError(ErrorCode.PROTOCOL_ERROR, text)
        raise ConnectionBrokenError(ErrorCode.PROTOCOL_ERROR, text)
    return increment


def check_place(frame: Frame) -> None:
    """Kinds have sizes and belong to a stream, to the connection, or to either.

    Raises:
        ConnectionBrokenError: this one does not; StreamBrokenError for a PRIORITY of the wrong size.
    """
    kind, size = frame.kind, len(frame.payload)
    place = _PLACES.get(kind)
    if place is not None and place != bool(frame.stream_id):
        where = "no stream" if place else f"stream {frame.stream_id}"
        raise ConnectionBrokenError(
            ErrorCode.PROTOCOL_ERROR, f"{Kind(kind).name} on {where}, which it cannot be on"
        )
    if kind == Kind.PRIORITY and size != 5:
        raise StreamBrokenError(ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {size} bytes")
    least, most = _SIZES.get(kind, (0, size))
    if not least <= size <= most:
        raise _wrong_size(frame)


_PLACES: Final[Mapping[int, bool]] = {
    Kind.DATA: True, Kind.HEADERS: True, Kind.PRIORITY: True, Kind.RST_STREAM: True, Kind.CONTINUATION: True,
    Kind.SETTINGS: False, Kind.PING: False, Kind.GOAWAY: False,
}  # fmt: skip
"""Whether a kind belongs to a stream."""
_SIZES: Final[Mapping[int, tuple[int, int]]] = {
    Kind.RST_STREAM: (4, 4),
    Kind.PING: (8, 8),
    Kind.GOAWAY: (8, 1 << 24),
}


def _unpadded(frame: Frame) -> bytes:
    payload = frame.payload
    if not payload:
        raise _wrong_size(frame)
    padding = payload[0]
    if padding >= len(payload):
        raise ConnectionBrokenError(
            ErrorCode.PROTOCOL_ERROR, f"{padding} bytes of padding in {len(payload)} of payload"
        )
    return payload[1 : len(payload) - padding]


def _wrong_size(frame: Frame) -> ConnectionBrokenError:
    return ConnectionBrokenError(
        ErrorCode.FRAME_SIZE_ERROR, f"{Kind(frame.kind).name} of {len(frame.payload)} bytes"
    )


# --- frames to send -------------------------------------------------------------------------------


def frame_head(kind: int, flags: int, stream_id: int, size: int) -> bytes:
    """The nine bytes before a payload."""
    return _HEAD.pack(size << 8 | kind, flags, stream_id)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return _HEAD.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def settings(values: dict[Setting, int]) -> bytes:
    """SETTINGS."""
    return frame(
        Kind.SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values.items())
    )


def reset(stream_id: int, code: int) -> bytes:
    """RST_STREAM."""
    return frame(Kind.RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def goaway(last_stream_id: int, code: int, text: str = "") -> bytes:
    """GOAWAY."""
    payload = last_stream_id.to_bytes(4, "big") + code.to_bytes(4, "big") + text.encode()[:200]
    return frame(Kind.GOAWAY, 0, 0, payload)


def window_update(stream_id: int, increment: int) -> bytes:
    """WINDOW_UPDATE."""
    return frame(Kind.WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))
