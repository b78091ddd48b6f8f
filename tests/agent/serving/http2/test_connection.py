"""The connection without a socket: what is left over when a stream has ended in one way or another."""

from functools import partial

from agent.serving.http2.connection import Connection
from agent.serving.http2.errors import ErrorCode
from agent.serving.http2.events import StreamGone
from agent.serving.http2.frames import END_STREAM, PREFACE, FrameReader, Kind, frame, window_update
from agent.serving.http2.grpc_messages import ANSWER_HEAD, OK_TRAILERS, CallHead, read_head
from agent.serving.http2.limits import Http2Limits
from tests.support.http2 import data, head


def connection(window: int) -> Connection[CallHead]:
    """Started by a peer whose streams have this window."""
    made = Connection(partial(read_head, methods={}), Http2Limits(), lambda: 0.0)
    setting = (4).to_bytes(2, "big") + window.to_bytes(4, "big")
    made.receive(PREFACE + frame(Kind.SETTINGS, 0, 0, setting))
    made.take()
    return made


def kinds(made: Connection[CallHead]) -> list[int]:
    return [one.kind for one in FrameReader(1 << 20).feed(made.take())]


def test_an_answer_that_waited_is_sent_once_and_forgotten() -> None:
    made = connection(0)
    made.receive(head(1) + data(1) + head(3) + data(3))
    for stream_id in (1, 3):
        made.send(stream_id, ANSWER_HEAD, (b"ab", b"cd"), OK_TRAILERS)
    assert (made.streams, made.unsent_bytes, made.unsent_of(1)) == (2, 8, 4)
    assert kinds(made) == [Kind.HEADERS, Kind.HEADERS]
    made.receive(window_update(1, 4) + window_update(0, 1))
    made.pump()
    assert kinds(made) == [Kind.DATA, Kind.HEADERS]
    assert (made.streams, made.unsent_bytes, made.unsent_of(1)) == (1, 4, 0)
    assert made.receive(frame(Kind.RST_STREAM, 0, 3, bytes(4))) == [StreamGone(3)]
    assert (made.streams, made.unsent_bytes) == (0, 0)
    made.receive(window_update(0, 1))
    assert kinds(made) == []


def test_a_stream_that_was_reset_is_gone() -> None:
    made = connection(100)
    made.receive(head(1) + head(3) + head(5))
    made.reset(1, ErrorCode.CANCEL)
    made.send(3, b"", (), ANSWER_HEAD + OK_TRAILERS)  # before its request is whole
    assert made.streams == 1
    assert made.receive(window_update(5, 0)) == [StreamGone(5)]
    assert made.streams == 0
    assert kinds(made) == [Kind.RST_STREAM, Kind.HEADERS, Kind.RST_STREAM, Kind.RST_STREAM]
    assert made.receive(data(1) + data(3) + data(5)) == [], "was under way, is ignored"
    assert not made.ended


def test_while_the_transport_takes_nothing_answers_wait() -> None:
    made = connection(100)
    made.receive(head(1) + data(1) + frame(Kind.PING, 0, 0, bytes(8)))
    made.writable(False)
    made.send(1, ANSWER_HEAD, (b"ab",), OK_TRAILERS)
    assert kinds(made) == [Kind.PING, Kind.HEADERS]
    made.writable(True)
    made.pump()
    assert kinds(made) == [Kind.DATA, Kind.HEADERS]


def test_a_large_answer_leaves_in_parts() -> None:
    made = Connection(
        partial(read_head, methods={}), Http2Limits(), lambda: 0.0, max_write_bytes=1000
    )
    made.receive(
        PREFACE
        + frame(Kind.SETTINGS, 0, 0)
        + head(1)
        + data(1)
        + window_update(0, 1 << 20)
        + window_update(1, 1 << 20)
    )
    made.take()
    made.send(1, ANSWER_HEAD, (bytes(100_000),), OK_TRAILERS)
    sizes = []
    while out := made.take():
        frames = list(FrameReader(1 << 20).feed(out))
        sizes.append(sum(len(one.payload) for one in frames if one.kind == Kind.DATA))
        made.pump()
    assert sum(sizes) == 100_000
    assert max(sizes) == 1000, "whatever the peer's frames may be"
    assert frames[-1].flags & END_STREAM
