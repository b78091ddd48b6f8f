"""Each hole that fuzzing has found, as small as it can be, and what is left where it was."""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.adapters.enrol_link import EnrolLink, Renewals
from agent.adapters.grpc_link import (
    GrpcLink,
    GrpcMetadataSource,
    GrpcPieceSource,
    channel_options,
    grpc_channel,
)
from agent.bundle import ManifestError, parse_manifest
from agent.errors import LinkError
from agent.identity.enrol import EnrolRequest
from agent.ports import PieceRange
from agent.runtime.errors import InputContractError
from agent.serving.rest.codec import parse_request
from agent.trust.errors import MalformedError
from agent.trust.limits import TrustLimits
from fleet.api.readable import ReadableRequests
from fleet.errors import RequestError
from fleet.home import PkiPaths
from fleet.registry.device_ca import requested_key
from fleet.registry.pki import init_pki
from protos import device_pb2, enrol_pb2_grpc, report_pb2
from tests.fuzz.bundle_targets import manifest_seed
from tests.fuzz.enrol_targets import EnrolBed, csrs
from tests.fuzz.holes import MESSAGE_CHARS
from tests.fuzz.mutations import nested
from tests.fuzz.serving_targets import feed_rest, rest_seed
from tests.fuzz.trust_targets import ROLES, TrustBed

GARBAGE = b"\xff\xff\xff"
NEAR_THE_END = range(sys.getrecursionlimit() - 120, sys.getrecursionlimit() + 10)
"""Depths that somebody with a few frames less on the stack can read, and somebody with more cannot."""


# --- depth ----------------------------------------------------------------------------------------


def deep_directive(bed: TrustBed, depth: int) -> bytes:
    return json.dumps({**bed.directive.to_json(), "id": "@"}).replace('"@"', nested(depth)).encode()


def test_signed_metadata_that_is_accepted_and_then_too_deep_to_be_read(
    trust: TrustBed, tmp_path: Path
) -> None:
    """It was verified and stored, and whoever read it after that, with more frames on the stack, ended."""
    for depth in (*range(20, 40), *NEAR_THE_END):
        trust.feed_directive(deep_directive(trust, depth))
    if sys.version_info >= (3, 12):
        return  # another stack, of another depth
    open_door = TrustBed(tmp_path, TrustLimits(levels=10**6))
    with pytest.raises(RecursionError):  # as it was
        all(
            not open_door.feed_directive(deep_directive(open_door, depth)) for depth in NEAR_THE_END
        )


def test_depth_is_refused_before_anything_is_read(trust: TrustBed) -> None:
    source = trust.fleet.offered(targets=nested(33).encode())
    from agent.trust import TrustState
    from agent.trust.refresh import TrustRefresher

    with pytest.raises(MalformedError, match="nested more than 32 levels deep"):
        TrustRefresher(trust.fleet.root).refresh(TrustState(), source, None, trust.fleet.now_s)


def test_a_rest_request_that_is_too_deep_to_be_told() -> None:
    for depth in NEAR_THE_END:
        feed_rest(
            b"\0\0" + json.dumps({**rest_seed(), "id": "@"}).replace('"@"', nested(depth)).encode()
        )
    told = None
    for depth in NEAR_THE_END:
        try:
            parse_request(f'{{"inputs": {{"a": {nested(depth)}}}}}'.encode(), None)
        except InputContractError as error:
            told = str(error)
            assert len(told) < 300
    assert told is not None


def test_a_manifest_that_is_too_deep_to_be_told() -> None:
    seed = json.loads(manifest_seed().to_bytes())
    seed["golden"][0]["inputs"][0][1]["file"] = "@"
    for depth in NEAR_THE_END:
        raw = json.dumps(seed).replace('"@"', nested(depth)).encode()
        with pytest.raises(ManifestError) as caught:
            parse_manifest(raw)
        assert len(str(caught.value)) < 300


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"\\ud800": 1, "\\ud800": 2}',
        "{" + ",".join(f'"{"k" * 100}{n % 99}": 0' for n in range(1000)) + "}",
        json.dumps({**json.loads(manifest_seed().to_bytes()), "\ud800": 1}),
    ],
    ids=["a repeated half of a surrogate pair", "many keys", "an unknown half of a surrogate pair"],
)
def test_a_manifest_whose_keys_no_report_can_carry(text: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text.encode())
    assert len(str(caught.value)) < 400
    report_pb2.DeploymentEvent(reason=str(caught.value))


def test_a_refusal_that_repeats_all_of_the_metadata(trust: TrustBed) -> None:
    """A snapshot with a digest of five thousand characters came back in the log each time."""
    signed = trust.signed_seed("snapshot")
    signed["meta"]["rollout.json"]["hashes"]["sha256"] = "x" * (MESSAGE_CHARS + 1000)
    trust.feed_signed(bytes((ROLES.index("snapshot"),)) + json.dumps(signed).encode())


@pytest.mark.parametrize(
    "change", [{"name": "x" * 5000}, {"datatype": "x" * 5000}, {"shape": [1] * 5000}]
)
def test_a_rest_request_whose_refusal_is_as_long_as_it(change: dict[str, Any]) -> None:
    said = rest_seed()
    said["inputs"][1] |= {"data": ["one too few"]} | change
    feed_rest(b"\0\0" + json.dumps(said).encode())


# --- answers that are no messages -----------------------------------------------------------------


class Hostile:
    """A real gRPC server that answers every call with bytes of its choice; a stream is these, one after the other."""

    def __init__(self, credentials: Any = None) -> None:
        self.messages: list[bytes] = [GARBAGE]
        self._runner = asyncio.Runner()
        self.address, self._server = self._runner.run(self._start(credentials))

    async def _start(self, credentials: Any) -> tuple[str, Any]:
        async def one(_request: bytes, _context: Any) -> bytes:
            return self.messages[0]

        async def stream(_request: bytes, _context: Any) -> Any:
            for message in self.messages:
                yield message

        unary = grpc.unary_unary_rpc_method_handler(one)
        streaming = grpc.unary_stream_rpc_method_handler(stream)
        server = grpc.aio.server()
        device = {"Hello": unary, "Report": unary, "GetMetadata": unary, "GetTarget": unary,
                  "Watch": streaming, "FetchPieces": streaming}  # fmt: skip
        enrolment = {"Enrol": unary, "Renew": unary, "Nonce": unary}
        server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler("muster.v1.DeviceService", device),
                grpc.method_handlers_generic_handler("muster.v1.EnrolService", enrolment),
            ]
        )
        port = (
            server.add_insecure_port("localhost:0")
            if credentials is None
            else server.add_secure_port("localhost:0", credentials)
        )
        await server.start()
        return f"localhost:{port}", server

    def run(self, work: Any) -> Any:
        return self._runner.run(work)

    def stop(self) -> None:
        self._runner.run(self._server.stop(None))
        self._runner.close()


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    made = Hostile()
    yield made
    made.stop()


async def asked(hostile: Hostile, ask: Callable[[Any], Any]) -> None:
    async with grpc_channel(hostile.address) as channel:
        with pytest.raises(LinkError, match="cannot be read"):
            await ask(channel)


async def first_piece(channel: Any) -> None:
    source = GrpcPieceSource(channel, "there", "cam-1")
    async for _ in source.fetch([PieceRange("a" * 64)]):
        pass


@pytest.mark.parametrize(
    "ask",
    [
        lambda channel: GrpcLink(channel, "there", "cam-1").hello("0.1.0"),
        lambda channel: GrpcLink(channel, "there", "cam-1").send(report_pb2.ReportBatch()),
        lambda channel: Renewals(channel, "there", None).renew(b""),
        first_piece,
    ],
    ids=["Hello", "Report", "Renew", "FetchPieces"],
)
def test_an_answer_that_is_no_message_is_a_link_error(
    hostile: Hostile, ask: Callable[[Any], Any]
) -> None:
    """grpc.aio has None for it, and a field of None was asked for: the device's task ended."""
    hostile.run(asked(hostile, ask))


def test_metadata_that_is_no_message_is_a_link_error(hostile: Hostile) -> None:
    async def asking() -> None:
        source = GrpcMetadataSource(hostile.address)
        for ask in (
            lambda: source.get_metadata("1.root.json"),
            lambda: source.get_target("x", "y"),
        ):
            with pytest.raises(LinkError):
                await asyncio.to_thread(ask)
        source.close()

    hostile.run(asking())


def test_a_downlink_that_is_no_message_is_passed_over(hostile: Hostile) -> None:
    hostile.messages = [GARBAGE, device_pb2.Downlink(pack=b"a pack").SerializeToString(), GARBAGE]

    async def watching() -> bytes | None:
        async with grpc_channel(hostile.address) as channel:
            link = GrpcLink(channel, "there", "cam-1")
            running = asyncio.ensure_future(link.run())
            async for message in link.messages():
                if message.pack is not None:
                    running.cancel()
                    return message.pack
        return None

    assert hostile.run(watching()) == b"a pack"


def test_an_enrolment_that_is_answered_with_no_message_is_a_link_error(tmp_path: Path) -> None:
    paths = PkiPaths(tmp_path / "pki")
    init_pki(paths, "lab", (), time.time())
    pair = (paths.server_key.read_bytes(), paths.server.read_bytes())
    made = Hostile(grpc.ssl_server_credentials([pair]))
    link = EnrolLink(made.address, paths.server_ca.read_bytes(), channel_options(None))

    async def enrolling() -> None:
        with pytest.raises(LinkError, match="cannot be read"):
            await link.enrol(EnrolRequest("t", "cam-1", "camera", b"", b"", b""))
        with pytest.raises(LinkError, match="cannot be read"):
            await link.nonce("cam-1")

    try:
        made.run(enrolling())
    finally:
        made.stop()


# --- strangers ------------------------------------------------------------------------------------


def test_a_strangers_key_is_looked_at_before_it_has_to_be_used() -> None:
    """Checking a signature by a key of sixteen thousand bits, for nobody: the kind of key is refused first."""
    for name in ("rsa 2048", "dsa", "p-384"):
        broken = bytearray(csrs()[name])
        broken[-3] ^= 1  # the signature
        with pytest.raises(RequestError, match="is not on the curve P-256"):
            requested_key(bytes(broken))


def test_a_request_that_is_no_message_leaves_no_trace_in_the_log(
    enrol: EnrolBed, caplog: pytest.LogCaptureFixture
) -> None:
    """gRPC wrote a traceback for each, before any limit for strangers was asked."""

    async def asking(interceptors: list[Any]) -> grpc.StatusCode:
        server = grpc.aio.server(interceptors=interceptors)
        add: Any = enrol_pb2_grpc.add_EnrolServiceServicer_to_server
        add(enrol.service, server)
        port = server.add_insecure_port("localhost:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
            try:
                await channel.unary_unary("/muster.v1.EnrolService/Enrol")(GARBAGE)
            except grpc.aio.AioRpcError as error:
                return error.code()
            finally:
                await server.stop(None)
        raise AssertionError("it was answered")

    with caplog.at_level(logging.WARNING):
        assert enrol.run(asking([ReadableRequests()])) is grpc.StatusCode.INVALID_ARGUMENT
        assert not caplog.records
        assert enrol.run(asking([])) is grpc.StatusCode.UNKNOWN  # as it was
        assert caplog.records


# --- bombs that gRPC defuses ----------------------------------------------------------------------

LIMIT = 64 * 1024


async def _exchange(request: bytes, answer: bytes) -> tuple[grpc.StatusCode, int]:
    """Both packed with gzip, both ends with our limits; the status, and how much the server was given."""
    given = 0

    async def one(got: bytes, _context: Any) -> bytes:
        nonlocal given
        given = len(got)
        return answer

    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", LIMIT)], compression=grpc.Compression.Gzip
    )
    handler = grpc.unary_unary_rpc_method_handler(one)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("x", {"Y": handler})])
    port = server.add_insecure_port("localhost:0")
    await server.start()
    options = [("grpc.max_receive_message_length", LIMIT)]
    async with grpc.aio.insecure_channel(f"localhost:{port}", options=options) as channel:
        try:
            await channel.unary_unary("/x/Y")(request, compression=grpc.Compression.Gzip)
        except grpc.aio.AioRpcError as error:
            return error.code(), given
        finally:
            await server.stop(None)
    return grpc.StatusCode.OK, given


def test_a_message_that_unpacks_to_more_than_may_come(enrol: EnrolBed) -> None:
    """gRPC's own limit holds for what a message unpacks to; were that no longer so, the enrolment port would unpack
    megabytes for any stranger."""
    bomb = bytes(20 * LIMIT)
    assert enrol.run(_exchange(bytes(LIMIT), b"")) == (grpc.StatusCode.OK, LIMIT)
    assert enrol.run(_exchange(bomb, b"")) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 0)
    assert enrol.run(_exchange(b"", bomb))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
