"""What one connection has to send: frames that go now, and the data that waits for windows.

Rules kept here:

- Data never goes into the output beyond ``max_write_bytes``, nor while the transport takes none; control frames do,
  their number is bounded by what a peer may ask for.
"""

from collections.abc import Callable, Sequence
from typing import Final

from agent.serving.http2.flow import SendWindow
from agent.serving.http2.frames import Kind, frame_head
from agent.serving.http2.headers import NO_TABLE
from agent.serving.http2.streams import Stream

__all__ = ["DEFAULT_FRAME_BYTES", "DEFAULT_WINDOW_BYTES", "Outbox"]

DEFAULT_WINDOW_BYTES: Final = 65_535
DEFAULT_FRAME_BYTES: Final = 1 << 14
DRIBBLE_BYTES: Final = 1024
"""Smaller parts of an answer, when the peer's window makes them so small, are ``dribbled``."""


class Outbox:
    """``dribbled`` is told of each part of an answer that a window made needlessly small, and may raise."""

    def __init__(self, max_write_bytes: int, dribbled: Callable[[], None]) -> None:
        self._max_write_bytes = max_write_bytes
        self._dribbled = dribbled
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._waiting: dict[int, Stream] = {}
        self.window = SendWindow(DEFAULT_WINDOW_BYTES)
        """The connection's."""
        self.peer_frame_bytes = DEFAULT_FRAME_BYTES
        self.table_due = False
        """The peer wants to hear that the header table shrank."""
        self.writable = True
        """Whether the transport takes more."""
        self.unsent_bytes = 0
        """Of all that waits."""
        self.drained = False
        """Nothing waits any more in a stream whose answers go on; its user unsets it."""

    def take(self) -> bytes:
        """What is to be sent now."""
        if not self._out:
            return b""
        joined = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        return joined

    def put(self, *parts: bytes | memoryview) -> None:
        """Send this, whole frames."""
        self._out += parts
        self._out_bytes += sum(map(len, parts))

    def block(self, stream_id: int, flags: int, block: bytes) -> None:
        """Send a header block."""
        if self.table_due:
            self.table_due = False
            block = NO_TABLE + block
        self.put(frame_head(Kind.HEADERS, flags, stream_id, len(block)), block)

    def data(self, stream: Stream, parts: Sequence[bytes]) -> None:
        """Send a stream's data as far as the windows allow; the rest waits."""
        size = sum(map(len, parts))
        if stream.unsent or size > self._room(stream):
            stream.unsent.append(memoryview(b"".join(parts)))
            stream.unsent_bytes += size
            self.unsent_bytes += size
            self._waiting[stream.id] = stream
            self.pump(stream)
        elif size:
            self.window.left -= size
            stream.send.left -= size
            self.put(frame_head(Kind.DATA, 0, stream.id, size), *parts)

    def waiting(self) -> list[Stream]:
        """The streams with data that waits."""
        return list(self._waiting.values())

    def pump(self, stream: Stream) -> None:
        """Send of what waits in a stream what may be sent now."""
        while stream.unsent:
            part = stream.unsent[0]
            size = min(len(part), self._room(stream))
            if size <= 0:
                return
            if size < DRIBBLE_BYTES and size < len(part):
                self._dribbled()
            self.window.left -= size
            stream.send.left -= size
            stream.unsent_bytes -= size
            self.unsent_bytes -= size
            self.put(frame_head(Kind.DATA, 0, stream.id, size), part[:size])
            if size == len(part):
                del stream.unsent[0]
            else:
                stream.unsent[0] = part[size:]
        self._waiting.pop(stream.id, None)
        if stream.trailers is None:
            self.drained = True

    def drop(self, stream: Stream) -> None:
        """The stream is gone, and what waits in it."""
        if self._waiting.pop(stream.id, None) is not None:
            self.unsent_bytes -= stream.unsent_bytes

    def drop_all(self) -> None:
        """The connection is."""
        self._waiting.clear()
        self.unsent_bytes = 0

    def _room(self, stream: Stream) -> int:
        """How many bytes may be sent in one frame now."""
        if not self.writable or self._out_bytes >= self._max_write_bytes:
            return 0
        frame_bytes = min(self.peer_frame_bytes, self._max_write_bytes)
        return min(frame_bytes, self.window.left, stream.send.left)
