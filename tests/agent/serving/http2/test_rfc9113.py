"""RFC 9113 as a table: what a client sends, and whether it loses a stream, its connection, or nothing, and why.

Over real sockets, with raw frames: no client library sends any of this.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from agent.serving.http2.errors import ErrorCode
from agent.serving.http2.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    MAX_WINDOW,
    Kind,
    frame,
    frame_head,
    window_update,
)
from agent.serving.http2.limits import CallLimits, Http2Limits
from tests.support.http2 import (
    INFER,
    Peer,
    Served,
    block,
    call,
    code_of,
    data,
    fields,
    head,
    prefixed,
    scale_request,
)

PADDED, PRIORITY = 0x8, 0x20
LIMITS = Http2Limits(max_streams=4, remembered_resets=8)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("rfc"), CallLimits(pool_threads=1), http2=LIMITS) as made:
        yield made


@dataclass(frozen=True)
class Row:
    """``first`` is dealt with before the rest is sent."""

    name: str
    sent: bytes
    code: ErrorCode | None
    first: bytes = b""
    stream_id: int = 1
    settings: tuple[tuple[int, int], ...] = ()


P, S, F, Z, C, E = (
    ErrorCode.PROTOCOL_ERROR,
    ErrorCode.STREAM_CLOSED,
    ErrorCode.FLOW_CONTROL_ERROR,
    ErrorCode.FRAME_SIZE_ERROR,
    ErrorCode.COMPRESSION_ERROR,
    ErrorCode.ENHANCE_YOUR_CALM,
)


def setting(key: int, value: int) -> bytes:
    return frame(Kind.SETTINGS, 0, 0, struct.pack(">HI", key, value))


CONNECTION = [
    Row("DATA on no stream", data(0), P),
    Row("HEADERS on no stream", head(0), P),
    Row("PRIORITY on no stream", frame(Kind.PRIORITY, 0, 0, bytes(5)), P),
    Row("RST_STREAM on no stream", frame(Kind.RST_STREAM, 0, 0, bytes(4)), P),
    Row("CONTINUATION on no stream", frame(Kind.CONTINUATION, 0, 0), P),
    Row("SETTINGS on a stream", frame(Kind.SETTINGS, 0, 1), P),
    Row("PING on a stream", frame(Kind.PING, 0, 1, bytes(8)), P),
    Row("GOAWAY on a stream", frame(Kind.GOAWAY, 0, 1, bytes(8)), P),
    Row("DATA on an idle stream", data(1), P),
    Row("RST_STREAM on an idle stream", frame(Kind.RST_STREAM, 0, 1, bytes(4)), P),
    Row("WINDOW_UPDATE on an idle stream", window_update(1, 1), P),
    Row("PUSH_PROMISE", frame(Kind.PUSH_PROMISE, END_HEADERS, 1, bytes(4)), P),
    Row("a stream with an even number", head(2), P),
    Row("a stream below one that was opened", call(1), S, first=call(3)),
    Row("DATA on a closed stream", data(1), S, first=call(1)),
    Row("HEADERS on a closed stream", head(1), S, first=call(1)),
    Row("RST_STREAM of 3 bytes", head(1) + frame(Kind.RST_STREAM, 0, 1, bytes(3)), Z),
    Row("SETTINGS of 5 bytes", frame(Kind.SETTINGS, 0, 0, bytes(5)), Z),
    Row("an acknowledgement that says something", frame(Kind.SETTINGS, ACK, 0, bytes(6)), Z),
    Row("PING of 7 bytes", frame(Kind.PING, 0, 0, bytes(7)), Z),
    Row("GOAWAY of 7 bytes", frame(Kind.GOAWAY, 0, 0, bytes(7)), Z),
    Row("WINDOW_UPDATE of 3 bytes", frame(Kind.WINDOW_UPDATE, 0, 0, bytes(3)), Z),
    Row("a frame that is too long", frame_head(Kind.DATA, 0, 1, LIMITS.max_frame_bytes + 1), Z),
    Row("HEADERS without room for their priority", frame(Kind.HEADERS, PRIORITY | END_HEADERS, 1, bytes(4)), Z),
    Row("padding without its length", frame(Kind.HEADERS, PADDED | END_HEADERS, 1), Z),
    Row("ENABLE_PUSH of 2", setting(2, 2), P),
    Row("a window beyond 2^31-1 by SETTINGS", setting(4, 1 << 31), F),
    Row("streams' windows beyond 2^31-1 by SETTINGS", setting(4, MAX_WINDOW), F,
        first=head(1) + window_update(1, 1000)),
    Row("MAX_FRAME_SIZE of 16383", setting(5, 16383), P),
    Row("MAX_FRAME_SIZE of 2^24", setting(5, 1 << 24), P),
    Row("SETTINGS with too many entries", frame(Kind.SETTINGS, 0, 0, bytes(6 * 33)), E),
    Row("WINDOW_UPDATE by nothing", window_update(0, 0), P),
    Row("a window beyond 2^31-1", window_update(0, MAX_WINDOW), F),
    Row("CONTINUATION alone", frame(Kind.CONTINUATION, END_HEADERS, 1), P),
    Row("a frame within a header block", head(1, flags=0) + frame(Kind.PING, 0, 0, bytes(8)), P),
    Row("another stream's CONTINUATION", head(1, flags=0) + frame(Kind.CONTINUATION, END_HEADERS, 3), P),
    Row("more padding than there is", frame(Kind.DATA, PADDED, 1, b"\x05abcd"), P, first=head(1)),
    Row("an index beyond the table", frame(Kind.HEADERS, END_HEADERS, 1, b"\xff\x80\x01"), C),
    Row("a block that is cut off", frame(Kind.HEADERS, END_HEADERS, 1, b"\x00\x0aabc"), C),
    Row("a number without an end", frame(Kind.HEADERS, END_HEADERS, 1, b"\xff" * 4000), C),
    Row("a table larger than offered", frame(Kind.HEADERS, END_HEADERS, 1, b"\x3f\xe2\x1f"), C),
    Row("a header block that is too large", frame(Kind.HEADERS, END_HEADERS, 1, bytes(9000)), E),
    Row("a header list that is too large", frame(Kind.HEADERS, END_HEADERS, 1,
        b"\x40\x01a\x7f\xb9\x16" + b"b" * 3000 + b"\xbe" * 6), E),
    Row("CONTINUATIONs without an end", head(1, flags=0) + frame(Kind.CONTINUATION, 0, 1) * 9, E),
]  # fmt: skip

HALF_OPEN = head(1, fields(INFER))
"""The request's message does not come."""
UNSENT = head(1, fields(INFER)) + data(1, prefixed(scale_request()))
"""With a window of nothing, its answer cannot be sent."""
NO_WINDOW = ((4, 0),)
STREAM = [
    Row("no :path", head(1, fields(x_path=None)), P),
    Row("an empty :path", head(1, fields(x_path="")), P),
    Row("no :method", head(1, fields(x_method=None)), P),
    Row("no :scheme", head(1, fields(x_scheme=None)), P),
    Row("an unknown pseudo-header", head(1, fields(x_status="200")), P),
    Row("a pseudo-header twice", head(1, [*fields(), (":path", "/")][::-1]), P),
    Row("a pseudo-header after a field", head(1, [("te", "trailers"), *fields()]), P),
    Row("a name in capitals", head(1, [*fields(), ("X-Name", "a")]), P),
    Row("an empty name", head(1, [*fields(), ("", "a")]), P),
    Row("a value with a line feed", head(1, fields(x="a\nb")), P),
    Row("a value with NUL", head(1, fields(x="a\0b")), P),
    Row("a value with a space before it", head(1, fields(x=" a")), P),
    Row("connection", head(1, fields(connection="close")), P),
    Row("transfer-encoding", head(1, fields(transfer_encoding="chunked")), P),
    Row("te that is not trailers", head(1, fields(te="gzip")), P),
    Row("trailers that end nothing", HALF_OPEN + head(1, [("a", "b")]), P),
    Row("trailers with a pseudo-header",
        HALF_OPEN + head(1, fields(), END_HEADERS | END_STREAM), P),
    Row("more than content-length", head(1, fields(INFER, content_length="4")) + data(1), P),
    Row("less than content-length", head(1, fields(INFER, content_length="6")) + data(1), P),
    Row("WINDOW_UPDATE of a stream by nothing", HALF_OPEN + window_update(1, 0), P),
    Row("a stream's window beyond 2^31-1", HALF_OPEN + window_update(1, MAX_WINDOW), F),
    Row("PRIORITY of 4 bytes", HALF_OPEN + frame(Kind.PRIORITY, 0, 1, bytes(4)), Z),
    Row("DATA after the end", UNSENT + data(1), S, settings=NO_WINDOW),
    Row("HEADERS after the end", UNSENT + head(1), S, settings=NO_WINDOW),
    Row("DATA after its own RST_STREAM", HALF_OPEN + frame(Kind.RST_STREAM, 0, 1, bytes(4)) + data(1), S),
    Row("one stream too many", b"".join(head(n, fields(INFER)) for n in (1, 3, 5, 7, 9)),
        ErrorCode.REFUSED_STREAM, stream_id=9),
]  # fmt: skip

NOTHING = [
    Row("an unknown kind", frame(0xFA, 0xFF, 1, b"abc"), None),
    Row("an unknown kind on no stream", frame(0xFA, 0, 0), None),
    Row("an unknown setting", setting(0x99, 7), None),
    Row("PRIORITY", frame(Kind.PRIORITY, 0, 1, bytes(5)), None),
    Row("GOAWAY", frame(Kind.GOAWAY, 0, 0, bytes(8)), None),
    Row("a PING's acknowledgement", frame(Kind.PING, ACK, 0, bytes(8)), None),
    Row("WINDOW_UPDATE on a closed stream", window_update(1, 1), None, first=call(1)),
    Row("RST_STREAM on a closed stream", frame(Kind.RST_STREAM, 0, 1, bytes(4)), None, first=call(1)),
    Row("DATA that was under way when the call was refused", data(1), None,
        first=head(1, fields("/none"))),
]  # fmt: skip


def sent(served: Served, row: Row) -> Peer:
    peer = served.peer(dict(row.settings))
    if row.first:
        peer.send(row.first)
        peer.until_pong()
    peer.send(row.sent)
    return peer


@pytest.mark.parametrize("row", CONNECTION, ids=lambda row: row.name)
def test_it_loses_its_connection(served: Served, row: Row) -> None:
    with sent(served, row) as peer:
        seen = peer.until(lambda _: False)  # up to the end of the connection
        assert [code_of(one) for one in seen if one.kind == Kind.GOAWAY] == [row.code]
        assert seen[-1].kind == Kind.GOAWAY
        assert seen[-1].payload[8:], "it is said why"


@pytest.mark.parametrize("row", STREAM, ids=lambda row: row.name)
def test_it_loses_a_stream_and_nothing_else(served: Served, row: Row) -> None:
    with sent(served, row) as peer:
        seen = peer.until_pong()
        resets = [(one.stream_id, code_of(one)) for one in seen if one.kind == Kind.RST_STREAM]
        assert resets == [(row.stream_id, row.code)]
        assert not any(one.kind == Kind.GOAWAY for one in seen)


@pytest.mark.parametrize("row", NOTHING, ids=lambda row: row.name)
def test_it_loses_nothing(served: Served, row: Row) -> None:
    with sent(served, row) as peer:
        ends = [one for one in peer.until_pong() if one.kind in (Kind.RST_STREAM, Kind.GOAWAY)]
        assert not any(code_of(one) for one in ends), "but NO_ERROR, after an early answer"
        peer.send(call(11))
        assert peer.answer(11)[0]["grpc-status"] == "0"


@pytest.mark.parametrize(
    "request_bytes",
    [
        call(1, INFER, scale_request()),
        head(1, fields(INFER), flags=0)[:0]
        + frame(Kind.HEADERS, 0, 1, block(fields(INFER))[:7])
        + frame(Kind.CONTINUATION, 0, 1, block(fields(INFER))[7:9])
        + frame(Kind.CONTINUATION, END_HEADERS, 1, block(fields(INFER))[9:])
        + data(1, prefixed(scale_request())),
        frame(Kind.HEADERS, END_HEADERS | PADDED | PRIORITY, 1,
              b"\x03" + bytes(5) + block(fields(INFER)) + bytes(3))
        + frame(Kind.DATA, END_STREAM | PADDED, 1, b"\x09" + prefixed(scale_request()) + bytes(9)),
        head(1, fields(INFER)) + data(1, prefixed(scale_request()), 0)
        + head(1, [("x-checksum", "1")], END_HEADERS | END_STREAM),
        head(1, fields(INFER)) + b"".join(
            data(1, prefixed(scale_request())[at : at + 3], 0)
            for at in range(0, len(prefixed(scale_request())), 3)
        ) + data(1, b""),
    ],
    ids=["two frames", "CONTINUATION", "padding and priority", "trailers", "in small pieces"],
)  # fmt: skip
def test_a_request_may_come_in_every_form(served: Served, request_bytes: bytes) -> None:
    with served.peer() as peer:
        for at in range(0, len(request_bytes), 50):
            peer.send(request_bytes[at : at + 50])
        said, message = peer.answer(1)
        assert (said[":status"], said["grpc-status"]) == ("200", "0")
        assert message.endswith(struct.pack("<4f", 2, 2, 2, 2))


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
        (b"POST /v2", b"HTTP/1.1 400 Bad Request\r\n"),
        (b"\x16\x03\x01\x02\x00", None),
        (b"PRI * HTTP/2.0\r\n\r\nXX", None),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(Kind.PING, 0, 0, bytes(8)), None),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(Kind.SETTINGS, ACK, 0), None),
    ],
)
def test_what_is_not_http2_is_told_so(served: Served, sent: bytes, says: bytes | None) -> None:
    with Peer(served.front.port, None) as peer:
        peer.send(sent)
        got = b""
        while more := peer.socket.recv(1 << 16):
            got += more
        if says is None:
            assert b"\0\0\0\x01" in got, "GOAWAY with PROTOCOL_ERROR"
        else:
            assert got.startswith(says)
            assert b"REST is on the port" in got


def test_a_smaller_table_is_acknowledged_once(served: Served) -> None:
    """RFC 7541, section 4.2: the next header block says that the table shrank."""
    with served.peer({1: 0}) as peer:
        peer._decoder.max_allowed_table_size = 0
        for stream_id in (1, 3):
            peer.send(call(stream_id))
            said, _ = peer.answer(stream_id)
            assert said["grpc-status"] == "0"


def test_an_answer_waits_for_the_windows(served: Served) -> None:
    with served.peer({4: 3}) as peer:
        peer.send(call(1, INFER, scale_request()))
        seen = peer.until(lambda one: one.kind == Kind.DATA)
        assert len(seen[-1].payload) == 3
        peer.send(setting(4, 10))
        seen = peer.until(lambda one: one.kind == Kind.DATA)
        assert len(seen[-1].payload) == 7
        peer.send(window_update(1, 1000))
        seen = peer.until(lambda one: bool(one.flags & END_STREAM) and one.kind == Kind.HEADERS)
        assert sum(one.kind == Kind.DATA for one in seen) == 1


def test_windows_are_independent(served: Served) -> None:
    """A stream whose window is shut holds up no other."""
    with served.peer({4: 0}) as peer:
        peer.send(call(1, INFER, scale_request()), call(3, INFER, scale_request()))
        peer.send(window_update(3, 1 << 20))
        seen = peer.until(lambda one: one.kind == Kind.DATA)
        assert seen[-1].stream_id == 3
