"""Whatever comes: the parser and the connection raise nothing but their own errors, and hold no more than they may."""

import struct
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.serving.http2.connection import Connection
from agent.serving.http2.errors import CallRefusedError, ConnectionBrokenError, ErrorCode
from agent.serving.http2.events import DataCame, RequestCame, StreamGone
from agent.serving.http2.frames import END_STREAM, PREFACE, Frame, FrameReader, Kind, frame
from agent.serving.http2.grpc_messages import (
    ANSWER_HEAD,
    OK_TRAILERS,
    CallHead,
    MessageReader,
    read_head,
)
from agent.serving.http2.limits import Http2Limits
from agent.serving.service import Kind as MethodKind
from agent.serving.service import Method
from tests.support.http2 import LIVE, data, fields, head, prefixed

METHODS = {LIVE: Method(LIVE, MethodKind.PLAIN, bytes)}
LIMITS = Http2Limits(
    max_frame_bytes=1 << 14, max_streams=4, allowance=50, remembered_resets=4, remembered_heads=2
)
START = PREFACE + frame(Kind.SETTINGS, 0, 0)

payloads = st.binary(max_size=60)
wild = st.builds(frame, st.integers(0, 12), st.integers(0, 255), st.integers(0, 12), payloads)
"""Frames of every kind on every stream, mostly wrong."""
settings_frames = st.lists(
    st.tuples(st.integers(0, 7), st.sampled_from([0, 1, 100, 16384, 65535, 2**31 - 1, 2**32 - 1])),
    max_size=4,
).map(lambda some: frame(Kind.SETTINGS, 0, 0, b"".join(struct.pack(">HI", *one) for one in some)))
windows = st.builds(
    lambda stream, grow: frame(Kind.WINDOW_UPDATE, 0, stream, grow.to_bytes(4, "big")),
    st.integers(0, 9), st.sampled_from([0, 1, 7, 65536, 2**31 - 1]),
)  # fmt: skip
good = st.one_of(
    st.integers(0, 6).map(lambda n: head(2 * n + 1)),
    st.builds(
        lambda n, body, end: data(2 * n + 1, body, end),
        st.integers(0, 6), payloads, st.sampled_from([0, END_STREAM]),
    ),
    st.integers(0, 6).map(lambda n: frame(Kind.RST_STREAM, 0, 2 * n + 1, bytes(4))),
    st.just(head(3, [("x-a", "b")], 5)),
    settings_frames,
    windows,
)  # fmt: skip
traffic = st.lists(st.one_of(good, good, good, wild), max_size=30)


def connection() -> Connection[CallHead]:
    now = iter(range(10**9))
    return Connection(
        partial(read_head, methods=METHODS), LIMITS, lambda: next(now) * 1e-6, max_write_bytes=4096
    )


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.builds(
            Frame, st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**31 - 1), payloads
        ),
        max_size=8,
    ),
    st.data(),
)
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    some: list[Frame], draw: st.DataObject
) -> None:
    stream = b"".join(frame(*one) for one in some)
    reader, seen, at = FrameReader(1 << 14), [], 0
    while at < len(stream):
        size = draw.draw(st.integers(1, len(stream) - at))
        seen += reader.feed(stream[at : at + size])
        at += size
    assert seen == some


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=6))
def test_the_parser_refuses_in_one_way(chunks: list[bytes]) -> None:
    reader = FrameReader(100)
    try:
        for chunk in chunks:
            assert all(len(one.payload) <= 100 for one in reader.feed(chunk))
    except ConnectionBrokenError as error:
        code = error.code
        assert code is ErrorCode.FRAME_SIZE_ERROR


@settings(max_examples=50, deadline=None)
@given(traffic, st.integers(1, 400), st.booleans())
def test_the_connection_takes_whatever_comes(some: list[bytes], cut: int, writable: bool) -> None:
    made = connection()
    made.writable(writable)
    stream = START + b"".join(some)
    open_streams: set[int] = set()
    for at in range(0, len(stream), cut):
        for event in made.receive(stream[at : at + cut]):
            if isinstance(event, RequestCame):
                assert event.stream_id not in open_streams
                open_streams.add(event.stream_id)
            assert event.stream_id in open_streams, "an event of a stream that is not open"
            if isinstance(event, StreamGone):
                open_streams.discard(event.stream_id)
                continue
            if isinstance(event, DataCame):
                made.consumed(event.stream_id, len(event.data))
            if event.ended:
                made.send(event.stream_id, ANSWER_HEAD, (b"x" * 5000,), OK_TRAILERS)
                open_streams.discard(event.stream_id)
        assert made.streams <= LIMITS.max_streams
        assert 0 <= made.unsent_bytes <= LIMITS.max_streams * 5000
        assert len(made.take()) < 64 * 1024
        made.pump()
    assert list(FrameReader(1 << 14).feed(made.take())) is not None
    if made.ended:
        assert made.receive(START) == []
        assert made.streams == 0


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300))
def test_nothing_but_http2_gets_an_answer_that_is_http2s(raw: bytes) -> None:
    made = connection()
    assert made.receive(raw) == [] or made.ended or raw.startswith(PREFACE)
    assert len(made.take()) < 1000


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=40).map(prefixed), st.binary(max_size=12)), max_size=6),
    st.integers(1, 50),
)
def test_messages_are_cut_and_all_bytes_are_accounted_for(parts: list[bytes], cut: int) -> None:
    held = 0

    def take(size: int) -> None:
        nonlocal held
        held += size
        assert held >= 0

    reader, stream, given_out = MessageReader(64, "gzip", take), b"".join(parts), 0
    try:
        for at in range(0, len(stream), cut):
            reader.feed(stream[at : at + cut])
            while (message := reader.next()) is not None:
                given_out += len(message)
    except CallRefusedError:  # its own error, and what is held is right all the same
        pass
    assert held == reader.kept_bytes + given_out


def test_the_heads_that_are_looked_up_are_those_that_were_read() -> None:
    """A block that means something else once the compression state has changed is read again."""
    made = connection()
    made.receive(START)
    indexed = b"\x83\x86\x44" + bytes([len(LIVE)]) + LIVE.encode() + b"\x5f\x10application/grpc"
    again = b"\x83\x86\xbf\xbe"  # :path and content-type out of the table
    other = b"\x40\x01a\x01b"
    seen = []
    for stream_id, block in (
        (1, indexed),
        (3, again),
        (5, again),
        (7, indexed.replace(b"Live", b"Dead")),
        (9, again),
    ):
        (event,) = made.receive(frame(Kind.HEADERS, 5, stream_id, block))
        assert isinstance(event, RequestCame)
        assert isinstance(event.head, CallHead)
        seen.append(event.head.method is not None)
        made.send(stream_id, b"", (), OK_TRAILERS)
    assert seen == [True, True, True, False, False]
    (event,) = made.receive(frame(Kind.HEADERS, 5, 11, again + other))
    assert made.receive(frame(Kind.HEADERS, 5, 13, again)) == [StreamGone(13)] or made.take(), (
        "content-type moved on"
    )


def test_a_window_is_no_larger_than_it_was_said_to_be() -> None:
    made = connection()
    made.receive(START + head(1, fields()))
    for _ in range(LIMITS.stream_window_bytes // (1 << 14)):
        made.receive(data(1, bytes(1 << 14), 0))
    assert not made.ended
    assert made.receive(data(1, b"x", 0)) == [StreamGone(1)]
    assert made.take().endswith(
        frame(Kind.RST_STREAM, 0, 1, int(ErrorCode.FLOW_CONTROL_ERROR).to_bytes(4, "big"))
    )
