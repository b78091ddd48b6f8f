"""gRPC's calls over our HTTP/2: statuses, deadlines, cancellation, large messages, streams, bounds, the end."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import grpc
import h2.config
import h2.connection
import h2.events
import numpy as np
import pytest
from h2.settings import SettingCodes

from agent.serving.http2.errors import ErrorCode
from agent.serving.http2.frames import END_HEADERS, END_STREAM, Kind, frame, window_update
from agent.serving.http2.limits import CallLimits, FrontLimits, Http2Limits
from agent.serving.placement import PlacementLimits
from protos import inference_pb2 as oip
from tests.support.http2 import (
    EMPTY,
    INFER,
    LIMIT_S,
    LIVE,
    STREAM,
    Fields,
    Peer,
    Served,
    call,
    code_of,
    data,
    fields,
    head,
    loop_request,
    prefixed,
    scale_request,
)

TIMEOUT = {"timeout": oip.InferParameter(int64_param=500_000)}
"""The protocol's own, in microseconds: no deadline of the call's."""
MAX_BYTES = 1 << 20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    bounds = CallLimits(
        pool_threads=2, max_message_bytes=MAX_BYTES, max_bytes_together=3 * MAX_BYTES, max_streams=2
    )
    with Served(tmp_path_factory.mktemp("calls"), bounds) as made:
        yield made


@pytest.fixture
def peer(served: Served) -> Iterator[Peer]:
    with served.peer({4: 1 << 24}) as made:
        yield made


def ended(peer: Peer, stream_id: int = 1) -> tuple[str, str]:
    """Status and message."""
    said, _ = peer.answer(stream_id)
    return said["grpc-status"], said.get("grpc-message", "")


def packed(content: bytes) -> bytes:
    """The same at any time: it becomes a part of a test's name."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("said", "message", "status", "says"),
    [
        (fields("/inference.GRPCInferenceService/Nothing"), EMPTY, "12", "there is no method"),
        (fields("/other.Service/ServerLive"), EMPTY, "12", "there is no method"),
        (fields(INFER, grpc_encoding="snappy"), EMPTY, "12", "grpc-encoding 'snappy'"),
        (fields(grpc_timeout="soon"), EMPTY, "3", "grpc-timeout 'soon' is no time"),
        (fields(grpc_timeout="123456789S"), EMPTY, "3", "is no time"),
        (fields(), b"", "13", "one whole message"),
        (fields(), EMPTY + EMPTY, "13", "one whole message"),
        (fields(), EMPTY[:4], "13", "one whole message"),
        (fields(), prefixed(b"abc")[:-1], "13", "one whole message"),
        (fields(INFER), prefixed(b"\xff\xff"), "13", "the request is no ModelInferRequest"),
        (fields(INFER), prefixed(scale_request(model_version="9")), "5", "no version '9'"),
        (fields(INFER), prefixed(scale_request())[:-4] + b"abcd", "0", ""),
        (fields(INFER), prefixed(b"", flag=1), "13", "the call says no grpc-encoding"),
        (fields(INFER), prefixed(b"", flag=7), "13", "has the flag 7"),
        (fields(INFER, grpc_encoding="gzip"), prefixed(b"abc", flag=1), "13", "is not gzip"),
        (fields(INFER, grpc_encoding="gzip"), prefixed(packed(bytes(MAX_BYTES + 1)), flag=1), "8", "is larger"),
        (fields(INFER, grpc_encoding="gzip"), prefixed(packed(scale_request()), flag=1), "0", ""),
        (fields(INFER, grpc_encoding="gzip"), prefixed(scale_request()), "0", ""),
        (fields(INFER, content_type="application/grpc+proto"), prefixed(scale_request()), "0", ""),
        (fields(INFER), prefixed(bytes(MAX_BYTES + 1))[:100], "8", "1048577 bytes came, at most 1048576"),
    ],
)  # fmt: skip
def test_statuses(peer: Peer, said: Fields, message: bytes, status: str, says: str) -> None:
    peer.send(head(1, said), data(1, message))
    got, text = ended(peer)
    assert got == status
    assert says in text
    peer.send(call(3))
    assert ended(peer, 3)[0] == "0", "the connection goes on"


def test_an_unknown_packing_is_told_which_are_known(peer: Peer) -> None:
    peer.send(call(1, grpc_encoding="br"))
    assert peer.answer(1)[0]["grpc-accept-encoding"] == "identity,gzip,deflate"


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (fields(content_type="application/json"), "415"),
        (fields(content_type=None), "415"),
        (fields(content_type="application/grpc-web"), "415"),
        (fields(x_method="GET"), "405"),
    ],
)
def test_what_is_not_grpc(peer: Peer, said: Fields, status: str) -> None:
    peer.send(head(1, said, END_HEADERS | END_STREAM))
    assert peer.answer(1)[0] == {":status": status, "content-type": "text/plain"}


def test_a_message_of_status_survives_every_character(served: Served) -> None:
    name = "grün% \U0001f600\n"
    with grpc.insecure_channel(served.address) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(INFER)(
            oip.ModelInferRequest(model_name=name).SerializeToString(), timeout=LIMIT_S
        )
    assert refused.value.details() == f"there is no model {name!r} on this device"


# --- time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["run", "stream", "body"])
def test_a_deadline_ends_the_call(served: Served, peer: Peer, kind: str) -> None:
    if kind == "run":
        peer.send(call(1, INFER, loop_request(2**62), grpc_timeout="50m"))
    elif kind == "stream":
        peer.send(head(1, fields(STREAM, grpc_timeout="50000u")))
    else:
        peer.send(head(1, fields(INFER, grpc_timeout="50m")))
    assert ended(peer)[0] == "4"
    peer.send(call(3, INFER, scale_request()))
    assert ended(peer, 3)[0] == "0", "its thread is free, or another one was"


def test_a_reset_stops_what_has_not_begun(tmp_path: Path) -> None:
    """The one thread of the pool is taken; what waits behind it is given up, and the model never hears of it."""
    with (
        Served(tmp_path, CallLimits(pool_threads=1)) as served,
        served.peer() as busy,
        served.peer() as other,
    ):
        counters = served.registry.versions("loop")[0].counters
        busy.send(call(1, INFER, loop_request(2**62, parameters=TIMEOUT)))
        busy.until_pong()
        other.send(*(call(n, INFER, loop_request(3)) for n in range(1, 41, 2)))
        other.send(*(frame(Kind.RST_STREAM, 0, n, bytes(4)) for n in range(1, 41, 2)))
        other.until_pong()
        assert ended(busy)[0] == "4"
        other.send(call(41, INFER, loop_request(3)))
        assert ended(other, 41)[0] == "0"
        counts = counters.drain()
        assert (counts.requests, counts.failures) == (2, 1)


# --- size ---------------------------------------------------------------------------------------


def h2_client(peer: Peer) -> h2.connection.H2Connection:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 20_000})
    return client


def ask_by_h2(peer: Peer, message: bytes) -> tuple[dict[bytes, bytes], bytes]:
    """One call by a client that keeps to every rule of flow control. Trailers and answer."""
    client = h2_client(peer)
    client.send_headers(1, fields(INFER))
    body, unsent = b"", prefixed(message)
    while True:
        while (
            unsent
            and (window := min(client.local_flow_control_window(1), client.max_outbound_frame_size))
            > 0
        ):
            client.send_data(1, unsent[:window], end_stream=len(unsent) <= window)
            unsent = unsent[window:]
        peer.send(client.data_to_send())
        for event in client.receive_data(peer.socket.recv(1 << 16)):
            if isinstance(event, h2.events.DataReceived):
                body += event.data
                client.acknowledge_received_data(event.flow_controlled_length, 1)
            elif isinstance(event, h2.events.TrailersReceived):
                return dict(event.headers), body[5:]
            assert not isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated)


def test_large_messages_go_through_small_windows_both_ways(served: Served) -> None:
    rows = MAX_BYTES // 16 - 100
    with Peer(served.front.port, None) as peer:
        trailers, message = ask_by_h2(peer, scale_request(rows))
    assert trailers[b"grpc-status"] == b"0"
    answer = oip.ModelInferResponse.FromString(message)
    got = np.frombuffer(answer.raw_output_contents[0], np.float32)
    assert (got.shape, set(got.tolist())) == ((rows * 4,), {2.0})


def test_a_usual_client_sends_and_gets_much(tmp_path: Path) -> None:
    """grpcio offers frames of megabytes, and windows that grow; and on a stream, one answer waits for the other."""
    much = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with Served(tmp_path) as served, grpc.insecure_channel(served.address, much) as channel:
        answer = channel.unary_unary(INFER)(scale_request(600_000), timeout=LIMIT_S)
        assert len(answer) > 600_000 * 16
        several = iter([scale_request(100_000)] * 4)
        answers = list(channel.stream_stream(STREAM)(several, timeout=LIMIT_S))
        assert [len(one) > 100_000 * 16 for one in answers] == [True] * 4


def test_requests_are_bounded_together(served: Served) -> None:
    """Three parts of requests fill what there is; the fourth call is refused, and all is given back."""
    part = bytes(900_000)
    with served.peer({4: 1 << 24}) as peer:
        for n in (1, 3, 5):
            peer.send(head(n, fields(INFER)), *_cut(n, prefixed(bytes(MAX_BYTES))[:5] + part))
        peer.send(head(7, fields(INFER)), *_cut(7, prefixed(bytes(MAX_BYTES))[:5] + part))
        status, text = ended(peer, 7)
        assert (status, "more do not fit" in text) == ("8", True)
        peer.send(*(frame(Kind.RST_STREAM, 0, n, bytes(4)) for n in (1, 3, 5)))
        peer.send(window_update(0, 1 << 24), head(9, fields(INFER)))
        peer.send(*_cut(9, prefixed(scale_request(50_000))), data(9, b""))
        assert ended(peer, 9)[0] == "0"


def _cut(stream_id: int, body: bytes) -> list[bytes]:
    return [data(stream_id, body[at : at + 16384], 0) for at in range(0, len(body), 16384)]


# --- streams ------------------------------------------------------------------------------------


def requests_of(ids: list[str]) -> Iterator[bytes]:
    for number in ids:
        yield scale_request(id=number, **({"model_version": "9"} if number == "2" else {}))


def test_a_stream_answers_in_order_and_goes_on_after_errors(served: Served) -> None:
    ids = [str(number) for number in range(100)]
    with grpc.insecure_channel(served.address) as channel:
        answers = [
            oip.ModelStreamInferResponse.FromString(raw)
            for raw in channel.stream_stream(STREAM)(requests_of(ids), timeout=LIMIT_S)
        ]
    assert [one.infer_response.id for one in answers] == ids
    assert [number for number, one in enumerate(answers) if one.error_message] == [2]
    assert all(one.infer_response.parameters["triton_final_response"].bool_param for one in answers)


def test_a_stream_without_requests_ends_well(peer: Peer) -> None:
    peer.send(head(1, fields(STREAM), END_HEADERS | END_STREAM))
    assert ended(peer)[0] == "0"


def test_what_ends_a_stream(peer: Peer) -> None:
    peer.send(head(1, fields(STREAM)), data(1, prefixed(b"\xff\xff"), 0))
    assert ended(peer)[0] == "13"
    peer.send(head(3, fields(STREAM)), data(3, prefixed(scale_request())[:-1]))
    status, text = ended(peer, 3)
    assert (status, text) == ("13", "the stream ended within a message")


def test_streams_are_bounded_and_take_nothing_from_calls(served: Served, peer: Peer) -> None:
    peer.send(head(1, fields(STREAM)), head(3, fields(STREAM)), head(5, fields(STREAM)))
    assert ended(peer, 5) == ("8", "2 streams are open, no more fit")
    peer.send(call(7, INFER, scale_request()))
    assert ended(peer, 7)[0] == "0"
    peer.send(data(1, b""), frame(Kind.RST_STREAM, 0, 3, bytes(4)))
    assert ended(peer, 1)[0] == "0"
    peer.send(head(9, fields(STREAM), END_HEADERS | END_STREAM))
    assert ended(peer, 9)[0] == "0"


def test_a_stream_whose_answers_are_not_read_is_not_read_either(served: Served) -> None:
    """With a window of nothing the first answer waits, and no second run begins."""
    counters = served.registry.versions("scale")[0].counters
    with served.peer({4: 0}) as peer:
        counters.drain()
        one = prefixed(scale_request())
        peer.send(head(1, fields(STREAM)), data(1, one * 50, 0))
        peer.until(lambda it: it.kind == Kind.HEADERS)
        peer.until_pong()
        assert counters.drain().requests == 1
        peer.send(window_update(1, 1 << 20), data(1, b""))
        seen = peer.until(lambda it: it.kind == Kind.HEADERS)
        assert seen[-1].flags & END_STREAM
        assert counters.drain().requests == 49


# --- on the event loop ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Whatever ran once runs on the event loop from then on."""
    bounds = CallLimits(
        placement=PlacementLimits(fast_s=1e9, slow_s=1e9), max_turn=4, pool_threads=1
    )
    with Served(tmp_path_factory.mktemp("inline"), bounds) as made:
        with made.peer() as peer:
            peer.send(call(1, INFER, scale_request(9, id="0")))
            assert ended(peer)[0] == "0"
        yield made


def test_many_calls_of_one_read_are_all_answered(inline: Served) -> None:
    """In turns, so that others have theirs; those that were reset before their turn are not run."""
    counters = inline.registry.versions("scale")[0].counters
    with inline.peer({4: 1 << 20}) as peer:
        counters.drain()
        many = [call(n, INFER, scale_request()) for n in range(1, 101, 2)]
        peer.send(*many, *(frame(Kind.RST_STREAM, 0, n, bytes(4)) for n in range(51, 101, 2)))
        answered = set()
        while len(answered) < 25:
            seen = peer.until(lambda it: it.kind == Kind.HEADERS and bool(it.flags & END_STREAM))
            answered.add(seen[-1].stream_id)
        peer.send(call(101))
        assert ended(peer, 101)[0] == "0"
        assert answered >= set(range(1, 51, 2))
        assert 25 <= counters.drain().requests <= 50


def test_a_stream_on_the_loop_answers_in_order(inline: Served) -> None:
    ids = [str(number) for number in range(50)]
    with grpc.insecure_channel(inline.address) as channel:
        answers = [
            oip.ModelStreamInferResponse.FromString(raw)
            for raw in channel.stream_stream(STREAM)(requests_of(ids), timeout=LIMIT_S)
        ]
    assert [one.infer_response.id for one in answers] == ids


def test_a_stream_of_one_read_answers_in_order(inline: Served) -> None:
    with inline.peer({4: 1 << 20}) as peer:
        ids = [str(number) for number in range(50)]
        peer.send(head(1, fields(STREAM)), data(1, b"".join(map(prefixed, requests_of(ids)))))
        body = b"".join(
            it.payload
            for it in peer.until(lambda it: it.kind == Kind.HEADERS and bool(it.flags & END_STREAM))
            if it.kind == Kind.DATA
        )
    got = []
    while body:
        size = int.from_bytes(body[1:5], "big")
        got.append(oip.ModelStreamInferResponse.FromString(body[5 : 5 + size]).infer_response.id)
        body = body[5 + size :]
    assert got == ids


def test_a_call_whose_time_is_over_is_not_run(inline: Served) -> None:
    counters = inline.registry.versions("scale")[0].counters
    with inline.peer() as peer:
        counters.drain()
        peer.send(call(1, INFER, scale_request(), grpc_timeout="0m"))
        assert ended(peer) == ("4", "the caller's time is over")
        assert counters.drain().requests == 0


# --- models that make room ----------------------------------------------------------------------


def test_calls_wait_for_a_held_model_without_a_thread(tmp_path: Path) -> None:
    with Served(tmp_path, CallLimits(pool_threads=1)) as served, served.peer() as peer:
        made = served.scale
        served.registry.unload("scale", made.sha256, hold_s=LIMIT_S)
        peer.send(*(call(n, INFER, scale_request()) for n in (1, 3, 5)))
        peer.send(call(7, INFER, scale_request(), grpc_timeout="50m"))
        assert ended(peer, 7)[0] == "4"
        peer.send(call(9, INFER, loop_request(3)))
        assert ended(peer, 9)[0] == "0", "the one thread is free"
        others = iter(range(101, 1 << 30, 2))
        while served.registry.waiting < 3:  # nobody is told of that, so it is looked for
            live = next(others)
            peer.send(call(live))
            assert ended(peer, live)[0] == "0"
        live = next(others)
        peer.send(frame(Kind.RST_STREAM, 0, 5, bytes(4)), call(live))
        assert ended(peer, live)[0] == "0"
        served.registry.load(made.path, made.sha256)
        served.registry.activate("scale", made.sha256)
        got: dict[int, str] = {}
        while len(got) < 2:
            seen = peer.until(lambda it: it.kind == Kind.HEADERS and bool(it.flags & END_STREAM))
            got[seen[-1].stream_id] = "answered"
        assert sorted(got) == [1, 3]
        assert served.registry.waiting == 0


# --- bounds -------------------------------------------------------------------------------------


def test_too_many_calls_are_told_so_at_once(tmp_path: Path) -> None:
    with (
        Served(tmp_path, CallLimits(pool_threads=1, max_requests=3)) as served,
        served.peer() as peer,
    ):
        peer.send(*(head(n, fields(INFER)) for n in (1, 3, 5)), call(7))
        assert ended(peer, 7) == ("8", "3 requests are under way; try again later")
        peer.send(frame(Kind.RST_STREAM, 0, 1, bytes(4)), call(9))
        assert ended(peer, 9)[0] == "0"


FLOODS = {
    "PING": frame(Kind.PING, 0, 0, bytes(8)),
    "SETTINGS": frame(Kind.SETTINGS, 0, 0),
    "PRIORITY": frame(Kind.PRIORITY, 0, 1, bytes(5)),
    "unknown": frame(0xAA, 0, 0),
    "empty DATA": data(1, b"", 0),
}


@pytest.mark.parametrize("name", [*FLOODS, "rapid reset", "refused streams"])
def test_floods_end_the_connection(flooded: Served, name: str) -> None:
    with flooded.peer() as peer:
        peer.send(head(1, fields(INFER)))
        for at in range(200):
            try:
                if name == "rapid reset":
                    n = 2 * at + 3
                    peer.send(head(n, fields(INFER)), frame(Kind.RST_STREAM, 0, n, bytes(4)))
                elif name == "refused streams":
                    peer.send(head(2 * at + 3, fields(INFER)))
                else:
                    peer.send(FLOODS[name])
            except (BrokenPipeError, ConnectionResetError):
                break
        seen = peer.until(lambda it: it.kind == Kind.GOAWAY)
        if seen and seen[-1].kind == Kind.GOAWAY:  # else the reset of the connection overtook it
            assert code_of(seen[-1]) == ErrorCode.ENHANCE_YOUR_CALM
        assert not peer.until(lambda _: False)
    with flooded.peer() as other:
        other.send(call(1))
        assert ended(other)[0] == "0", "nobody else notices"


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    bounds = Http2Limits(allowance=50, allowance_per_s=0.0, max_streams=4)
    with Served(tmp_path_factory.mktemp("floods"), http2=bounds) as made:
        yield made


def test_work_pays_for_control_frames(flooded: Served) -> None:
    with flooded.peer() as peer:
        for n in range(1, 201, 2):
            peer.send(frame(Kind.PING, 0, 0, bytes(8)), call(n))
            assert ended(peer, n)[0] == "0"


def test_a_peer_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    limits = FrontLimits(handshake_s=0.0, look_every_s=0.01)
    with Served(tmp_path, limits=limits) as served, Peer(served.front.port, None) as silent:
        assert code_of(silent.until(lambda _: False)[-1]) == ErrorCode.SETTINGS_TIMEOUT


def test_a_peer_that_asks_nothing_is_bidden_farewell(tmp_path: Path) -> None:
    limits = FrontLimits(idle_s=0.0, look_every_s=0.01)
    with Served(tmp_path, limits=limits) as served, served.peer() as idle:
        seen = idle.until(lambda _: False)
        assert (seen[-1].kind, code_of(seen[-1])) == (Kind.GOAWAY, ErrorCode.NO_ERROR)


def test_a_request_that_does_not_come_is_given_up(tmp_path: Path) -> None:
    with (
        Served(tmp_path, limits=FrontLimits(request_s=0.0, look_every_s=0.01)) as served,
        served.peer() as peer,
    ):
        peer.send(head(1, fields(INFER)))
        assert ended(peer) == ("4", "the rest of the request did not come")


def test_a_reader_that_stalls_is_given_up_and_holds_nothing(tmp_path: Path) -> None:
    limits = FrontLimits(stall_s=0.0, look_every_s=0.01)
    with Served(tmp_path, limits=limits) as served, served.peer({4: 0}) as peer:
        peer.send(call(1, INFER, scale_request()))
        assert peer.until(lambda _: False)[-1].kind in (Kind.HEADERS, Kind.SETTINGS)


def test_silence_is_asked_about(tmp_path: Path) -> None:
    limits = FrontLimits(keepalive_s=0.0, keepalive_wait_s=1e9, look_every_s=0.01)
    with Served(tmp_path, limits=limits) as served, served.peer() as peer:
        peer.send(head(1, fields(STREAM)))
        asked = peer.until(lambda it: it.kind == Kind.PING)
        assert not asked[-1].flags


def test_connections_are_bounded(tmp_path: Path) -> None:
    with Served(tmp_path, limits=FrontLimits(max_connections=1)) as served, served.peer() as first:
        first.send(call(1))
        assert ended(first)[0] == "0"
        with served.peer() as second:
            seen = second.until(lambda _: False)
            assert code_of(seen[-1]) == ErrorCode.ENHANCE_YOUR_CALM
        first.send(call(3))
        assert ended(first, 3)[0] == "0"


# --- the end ------------------------------------------------------------------------------------


def test_a_stop_lets_calls_end_and_takes_no_new_ones(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.front.start()
    with served.peer() as peer, served.peer() as idle:
        peer.send(head(1, fields(INFER)))
        peer.until_pong()
        idle.until_pong()
        served.front.stop(LIMIT_S)
        goodbye = peer.until(lambda it: it.kind == Kind.GOAWAY)[-1]
        assert (int.from_bytes(goodbye.payload[:4], "big"), code_of(goodbye)) == (
            1,
            ErrorCode.NO_ERROR,
        )
        assert idle.until(lambda _: False)[-1].kind == Kind.GOAWAY
        peer.send(call(3))
        refused = peer.until(lambda it: it.kind == Kind.RST_STREAM)[-1]
        assert (refused.stream_id, code_of(refused)) == (3, ErrorCode.REFUSED_STREAM)
        peer.send(data(1, prefixed(scale_request())))
        assert ended(peer)[0] == "0"
        assert peer.until(lambda _: False) == []
    served.front.wait()
    served.watchdog.stop()
    served.registry.close()


def test_a_stop_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.front.start()
    with served.peer() as peer:
        peer.send(head(1, fields(STREAM)))
        peer.until_pong()
        served.front.stop(0.01)
        served.front.wait()
        assert peer.until(lambda _: False)[-1].kind == Kind.GOAWAY
    served.watchdog.stop()
    served.registry.close()


def test_runs_that_do_not_end_hold_up_nobody_else(served: Served) -> None:
    """They are in the pool: the event loop answers."""
    with served.peer() as busy, served.peer() as other:
        endless = loop_request(2**62, parameters=TIMEOUT)
        busy.send(*(call(n, INFER, endless) for n in (1, 3)))
        busy.until_pong()
        other.send(call(1, LIVE))
        assert ended(other)[0] == "0"
        for _ in range(2):
            busy.until(lambda it: it.kind == Kind.HEADERS)
