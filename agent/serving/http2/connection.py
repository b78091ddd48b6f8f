"""One HTTP/2 connection, the server's side, without I/O: bytes in, events out; answers in, bytes out.

Rules kept here:

- ``receive`` raises nothing, whatever comes: a broken stream is reset, a broken connection ends with GOAWAY.
- Which frame may come on which stream is ``streams.TRANSITIONS``, and nowhere else.
- What is not sent yet waits in its stream, never in the output beyond ``max_write_bytes`` (``outbox``).
- The compression state is kept whatever becomes of a stream: header blocks of refused streams are read too.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from agent.serving.http2 import frames
from agent.serving.http2.errors import ConnectionBrokenError, ErrorCode, StreamBrokenError
from agent.serving.http2.events import DataCame, Event, Head, RequestCame, StreamGone
from agent.serving.http2.flow import ReceiveWindow
from agent.serving.http2.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    MAX_WINDOW,
    PREFACE,
    Frame,
    FrameReader,
    Kind,
    Setting,
    frame,
)
from agent.serving.http2.headers import Fields, HeaderDecoder, check_trailers
from agent.serving.http2.limits import Allowance, Http2Limits
from agent.serving.http2.outbox import DEFAULT_FRAME_BYTES, DEFAULT_WINDOW_BYTES, Outbox
from agent.serving.http2.streams import TRANSITIONS, Came, State, Stream

__all__ = ["Connection"]

DEFAULT_TABLE_BYTES: Final = 4096

_HTTP1_TEXT: Final = b"This port speaks gRPC over HTTP/2. REST is on the port of [serving] http.\n"
_HTTP1_ANSWER: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_HTTP1_TEXT), _HTTP1_TEXT)
)


H = TypeVar("H", bound=Head)


class _Block(NamedTuple):
    """A header block whose end has not come."""

    stream_id: int
    ended: bool
    parts: list[bytes]


class Connection(Generic[H]):
    """The protocol's state. ``read`` makes of a request's fields what ``RequestCame`` carries."""

    def __init__(
        self,
        read: Callable[[Fields], H],
        limits: Http2Limits,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_write_bytes: int = 1 << 18,
    ) -> None:
        self._limits = limits
        self._reader = FrameReader(limits.max_frame_bytes)
        self._decoder = HeaderDecoder(read, limits.max_header_list_bytes, limits.remembered_heads)
        self._allowance = Allowance(limits.allowance, limits.allowance_per_s, clock)
        self._receive = ReceiveWindow(limits.connection_window_bytes)
        self._peer_window = DEFAULT_WINDOW_BYTES
        self._streams: dict[int, Stream] = {}
        self._resets: OrderedDict[int, State] = OrderedDict()
        self._last = 0
        self._preface = bytearray()
        self._begun = False
        self._block: _Block | None = None
        self._out = Outbox(max_write_bytes, self._spend)
        self.settled = False
        """The peer's first SETTINGS came."""
        self.draining = False
        """No new streams."""
        self.ended = False
        """Nothing more is taken or sent once the output is."""
        self._handlers: dict[int, Callable[[Frame, list[Event]], None]] = {
            Kind.DATA: self._take_data,
            Kind.HEADERS: self._take_headers,
            Kind.PRIORITY: self._take_nothing,
            Kind.RST_STREAM: self._take_reset,
            Kind.SETTINGS: self._take_settings,
            Kind.PING: self._take_ping,
            Kind.GOAWAY: self._take_nothing,
            Kind.WINDOW_UPDATE: self._take_window_update,
        }

    # --- for its user -----------------------------------------------------------------------------

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._streams)

    def receive(self, data: bytes) -> Sequence[Event]:
        """What these bytes mean. Nothing once the connection has ``ended``."""
        events: list[Event] = []
        if self.ended:
            return events
        try:
            if not self._begun:
                data = self._after_preface(data)
            for one in self._reader.feed(data):
                self._take(one, events)
        except ConnectionBrokenError as error:
            self._break(error.code, str(error))
            return []
        return events

    def take(self) -> bytes:
        """What is to be sent now."""
        return self._out.take()

    def send(
        self,
        stream_id: int,
        head: bytes,
        data: Sequence[bytes] = (),
        trailers: bytes | None = None,
    ) -> None:
        """Answer: a header block unless empty, data, and with ``trailers`` the block that ends the stream. What the
        peer's windows do not allow now is sent when they do. Nothing happens when the stream is gone."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        out = self._out
        if head:
            out.block(stream_id, END_HEADERS, head)
        if data:
            out.data(stream, data)
        if trailers is None:
            return
        if stream.unsent:
            stream.trailers = trailers
        else:
            self._finish(stream, trailers)

    def unsent_of(self, stream_id: int) -> int:
        """How many bytes of this stream wait for windows."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.unsent_bytes

    def pump(self) -> None:
        """Put what waits into the output, as far as windows and ``max_write_bytes`` allow."""
        for stream in self._out.waiting():
            self._pump(stream)

    @property
    def unsent_bytes(self) -> int:
        """Of answers that wait for windows."""
        return self._out.unsent_bytes

    def drained(self) -> bool:
        """Whether, since this was last asked, all was sent that waited in a stream whose answers go on."""
        drained, self._out.drained = self._out.drained, False
        return drained

    def writable(self, value: bool) -> None:
        """Whether the transport takes more. While it does not, answers wait like for a window."""
        self._out.writable = value

    def consumed(self, stream_id: int, size: int) -> None:
        """So much of what came on this stream is dealt with: the peer may send more."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.state is not State.OPEN:
            return
        increment = stream.receive.consumed(size)
        if increment:
            self._out.put(frames.window_update(stream_id, increment))

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """End a stream without an answer."""
        if stream_id in self._streams:
            self._reset(stream_id, code)

    def ping(self) -> None:
        """Ask whether the peer is there."""
        self._out.put(frame(Kind.PING, 0, 0, b"\0" * 8))

    def drain(self) -> None:
        """No new streams; those that are open go on."""
        if not self.draining and not self.ended:
            self.draining = True
            self._out.put(frames.goaway(self._last, ErrorCode.NO_ERROR))

    def close(self, code: ErrorCode, text: str) -> None:
        """End the connection at once."""
        if not self.ended:
            self._break(code, text)

    # --- frames -----------------------------------------------------------------------------------

    def _greet(self) -> None:
        limits = self._limits
        self._out.put(
            frames.settings(
                {
                    Setting.MAX_CONCURRENT_STREAMS: limits.max_streams,
                    Setting.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                    Setting.MAX_FRAME_SIZE: limits.max_frame_bytes,
                    Setting.MAX_HEADER_LIST_SIZE: limits.max_header_list_bytes,
                }
            ),
            frames.window_update(0, limits.connection_window_bytes - DEFAULT_WINDOW_BYTES),
        )

    def _after_preface(self, data: bytes) -> bytes:
        self._preface += data
        came = bytes(self._preface[: len(PREFACE)])
        if came != PREFACE[: len(came)]:
            if came[:1].isupper() and came[:3] != PREFACE[:3]:
                self._out.put(_HTTP1_ANSWER)
                self.ended = True
                return b""
            raise ConnectionBrokenError(ErrorCode.PROTOCOL_ERROR, "this is not HTTP/2")
        if len(came) < len(PREFACE):
            return b""
        rest = bytes(self._preface[len(PREFACE) :])
        self._preface.clear()
        self._begun = True
        self._greet()  # not sooner: HTTP/1 would not understand it
        return rest

    def _take(self, one: Frame, events: list[Event]) -> None:
        try:
            if self._block is not None or one.kind == Kind.CONTINUATION:
                self._take_continuation(one, events)
                return
            if not self.settled and (one.kind != Kind.SETTINGS or one.flags & ACK):
                raise ConnectionBrokenError(
                    ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS"
                )
            if one.kind > Kind.HEADERS or not one.stream_id:
                frames.check_place(one)
            handler = self._handlers.get(one.kind)
            if handler is not None:
                handler(one, events)
            elif one.kind == Kind.PUSH_PROMISE:
                raise ConnectionBrokenError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")
            else:
                self._spend()
        except StreamBrokenError as error:
            self._spend()
            if one.stream_id in self._streams:
                events.append(StreamGone(one.stream_id))
            self._reset(one.stream_id, error.code)

    def _take_data(self, one: Frame, events: list[Event]) -> None:
        stream_id, size = one.stream_id, len(one.payload)
        if not self._receive.take(size):
            raise ConnectionBrokenError(
                ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the window allows"
            )
        increment = self._receive.consumed(size)
        if increment:
            self._out.put(frames.window_update(0, increment))
        data = frames.data_of(one)
        stream = self._came(stream_id, Came.DATA)
        if stream is None:
            return
        if not stream.receive.take(size):
            raise StreamBrokenError(
                ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the window allows"
            )
        if stream.expected is not None:
            stream.expected -= len(data)
            if stream.expected < 0:
                raise StreamBrokenError(ErrorCode.PROTOCOL_ERROR, "more DATA than content-length")
        ended = bool(one.flags & END_STREAM)
        if ended:
            self._end(stream)
        elif not data:
            self._spend()
        if size != len(data):
            self.consumed(stream_id, size - len(data))
        events.append(DataCame(stream_id, data, ended))

    def _take_headers(self, one: Frame, events: list[Event]) -> None:
        block = frames.header_block_of(one)
        if len(block) > self._limits.max_header_block_bytes:
            raise _too_long(len(block))
        ended = bool(one.flags & END_STREAM)
        if not one.flags & END_HEADERS:
            self._block = _Block(one.stream_id, ended, [block])
            return
        self._take_block(one.stream_id, ended, block, events)

    def _take_continuation(self, one: Frame, events: list[Event]) -> None:
        pending = self._block
        if pending is None or one.kind != Kind.CONTINUATION or one.stream_id != pending.stream_id:
            raise ConnectionBrokenError(
                ErrorCode.PROTOCOL_ERROR, "CONTINUATION alone, or a header block without its end"
            )
        pending.parts.append(one.payload)
        size = sum(map(len, pending.parts))
        if size > self._limits.max_header_block_bytes:
            raise _too_long(size)
        if len(pending.parts) > self._limits.max_continuations + 1:
            raise ConnectionBrokenError(
                ErrorCode.ENHANCE_YOUR_CALM, "a header block in too many frames"
            )
        if one.flags & END_HEADERS:
            self._block = None
            block = b"".join(pending.parts)
            self._take_block(pending.stream_id, pending.ended, block, events)

    def _take_block(self, stream_id: int, ended: bool, block: bytes, events: list[Event]) -> None:
        if stream_id <= self._last:
            self._take_trailers(stream_id, ended, block, events)
            return
        if stream_id % 2 == 0:
            raise ConnectionBrokenError(
                ErrorCode.PROTOCOL_ERROR, f"a client cannot open stream {stream_id}"
            )
        self._last = stream_id
        head = self._decoder.request(block)
        if self.draining or len(self._streams) >= self._limits.max_streams:
            raise StreamBrokenError(ErrorCode.REFUSED_STREAM, "no more streams are taken")
        stream = Stream(stream_id, self._peer_window, self._limits.stream_window_bytes, head.length)
        if ended:
            self._end(stream)
        self._streams[stream_id] = stream
        events.append(RequestCame(stream_id, head, ended))

    def _take_trailers(
        self, stream_id: int, ended: bool, block: bytes, events: list[Event]
    ) -> None:
        fields = self._decoder.fields(block)
        stream = self._came(stream_id, Came.HEADERS)
        if stream is None:
            return
        check_trailers(fields)
        if not ended:
            raise StreamBrokenError(ErrorCode.PROTOCOL_ERROR, "trailers that end nothing")
        self._end(stream)
        events.append(DataCame(stream_id, b"", True))

    def _take_reset(self, one: Frame, events: list[Event]) -> None:
        self._spend()
        stream = self._came(one.stream_id, Came.RST_STREAM)
        if stream is not None:
            self._forget(stream, State.CANCELLED)
            events.append(StreamGone(one.stream_id))

    def _take_settings(self, one: Frame, _events: list[Event]) -> None:
        self._spend()
        for key, value in frames.settings_of(one, self._limits.max_settings):
            self._set(key, value)
        if not one.flags & ACK:
            self.settled = True
            self._out.put(frame(Kind.SETTINGS, ACK, 0))
            self.pump()

    def _set(self, key: int, value: int) -> None:
        if key == Setting.INITIAL_WINDOW_SIZE:
            grown, self._peer_window = value - self._peer_window, value
            if value > MAX_WINDOW or not all(
                stream.send.grow(grown) for stream in self._streams.values()
            ):
                raise ConnectionBrokenError(ErrorCode.FLOW_CONTROL_ERROR, "a window beyond 2^31-1")
        elif key == Setting.MAX_FRAME_SIZE:
            if not DEFAULT_FRAME_BYTES <= value < 1 << 24:
                raise ConnectionBrokenError(
                    ErrorCode.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE is {value}"
                )
            self._out.peer_frame_bytes = value
        elif key == Setting.ENABLE_PUSH and value > 1:
            raise ConnectionBrokenError(
                ErrorCode.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH is {value}"
            )
        elif key == Setting.HEADER_TABLE_SIZE and value < DEFAULT_TABLE_BYTES:
            self._out.table_due = True

    def _take_ping(self, one: Frame, _events: list[Event]) -> None:
        self._spend()
        if not one.flags & ACK:
            self._out.put(frame(Kind.PING, ACK, 0, one.payload))

    def _take_window_update(self, one: Frame, _events: list[Event]) -> None:
        if not one.stream_id:
            if not self._out.window.grow(frames.increment_of(one)):
                raise ConnectionBrokenError(ErrorCode.FLOW_CONTROL_ERROR, "a window beyond 2^31-1")
            self.pump()
            return
        stream = self._came(one.stream_id, Came.WINDOW_UPDATE)
        increment = frames.increment_of(one)
        if stream is None:
            return
        if not stream.send.grow(increment):
            raise StreamBrokenError(ErrorCode.FLOW_CONTROL_ERROR, "a window beyond 2^31-1")
        if stream.unsent:
            self._pump(stream)

    def _take_nothing(self, _one: Frame, _events: list[Event]) -> None:
        self._spend()

    # --- streams ----------------------------------------------------------------------------------

    def _came(self, stream_id: int, what: Came) -> Stream | None:
        """The stream, in its next state; None: what came is to be ignored. Raises by the table."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            state = stream.state
        elif stream_id > self._last:
            state = State.IDLE
        else:
            state = self._resets.get(stream_id, State.CLOSED)
        after = TRANSITIONS[state, what]
        if isinstance(after, State):
            assert stream is not None, f"{state} {what} is no stream"
            stream.state = after
            return stream
        code, whole = after.value
        if code is None:
            return None
        text = f"{what.value} on stream {stream_id}: {state.value}"
        raise ConnectionBrokenError(code, text) if whole else StreamBrokenError(code, text)

    def _end(self, stream: Stream) -> None:
        """The request is whole. Raises StreamBrokenError."""
        if stream.expected:
            raise StreamBrokenError(ErrorCode.PROTOCOL_ERROR, "less DATA than content-length")
        after = TRANSITIONS[stream.state, Came.END]
        assert isinstance(after, State)
        stream.state = after

    def _finish(self, stream: Stream, trailers: bytes) -> None:
        """The answer is whole."""
        self._out.block(stream.id, END_HEADERS | END_STREAM, trailers)
        self._allowance.give(self._limits.allowance_per_answer)
        if stream.state is State.OPEN:
            self._reset(stream.id, ErrorCode.NO_ERROR)
        else:
            self._drop(stream)

    def _pump(self, stream: Stream) -> None:
        self._out.pump(stream)
        if not stream.unsent and stream.trailers is not None:
            self._finish(stream, stream.trailers)

    def _reset(self, stream_id: int, code: ErrorCode) -> None:
        self._out.put(frames.reset(stream_id, code))
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._drop(stream)
        self._remember(stream_id, State.RESET)

    def _forget(self, stream: Stream, state: State) -> None:
        self._drop(stream)
        self._remember(stream.id, state)

    def _drop(self, stream: Stream) -> None:
        del self._streams[stream.id]
        self._out.drop(stream)

    def _remember(self, stream_id: int, state: State) -> None:
        self._resets[stream_id] = state
        if len(self._resets) > self._limits.remembered_resets:
            self._resets.popitem(last=False)

    # --- ends ---------------------------------------------------------------------------------------

    def _spend(self) -> None:
        if not self._allowance.spend():
            raise ConnectionBrokenError(
                ErrorCode.ENHANCE_YOUR_CALM, "too many frames that ask for nothing"
            )

    def _break(self, code: ErrorCode, text: str) -> None:
        self.ended = True
        self._streams.clear()
        self._out.drop_all()
        self._out.put(frames.goaway(self._last, code, text))


def _too_long(size: int) -> ConnectionBrokenError:
    return ConnectionBrokenError(
        ErrorCode.ENHANCE_YOUR_CALM, f"a header block of {size} bytes and more"
    )
