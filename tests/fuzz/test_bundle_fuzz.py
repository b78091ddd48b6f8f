"""Manifests and streams of pieces: whatever comes is read, or refused by an error of ours; nothing else is kept."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters.grpc_link import GrpcLimits, GrpcPieceSource
from agent.delivery import PieceFetch
from agent.errors import LinkError
from tests.fuzz.bundle_targets import (
    CONTENTS,
    LIMITS,
    PIECES,
    PieceBed,
    chunk_message,
    feed_manifest,
    manifest_seed,
    manifest_target,
    script,
)
from tests.fuzz.holes import check_accepted, refusals
from tests.fuzz.mutations import bytes_like, examples, json_like

MANIFEST = json.loads(manifest_seed().to_bytes())


@examples(300)
@given(json_like([MANIFEST]) | bytes_like([manifest_seed().to_bytes()], most=3))
def test_a_manifest_of_any_form(raw: bytes) -> None:
    feed_manifest(raw)


def test_what_is_fuzzed_is_valid_before_it_is_changed(pieces: PieceBed) -> None:
    check_accepted(manifest_target())
    check_accepted(pieces.target())
    assert set(MANIFEST) == set(manifest_seed().__dataclass_fields__)


# --- pieces ---------------------------------------------------------------------------------------


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A chunk, mostly of a piece that was asked for, mostly at a place where it could go on."""
    number = draw(st.integers(0, len(PIECES) - 1))
    piece, content = PIECES[number], CONTENTS[number]
    sha256 = draw(
        st.sampled_from([piece.sha256] * 6 + ["f" * 64, "../x", "", piece.sha256.upper()])
    )
    offset = draw(st.sampled_from([0, 0, 0, 300, 300, 600, piece.size, 2**63, 2**64 - 1]))
    data = draw(
        st.sampled_from(
            [content, content, content[:300], content[300:600], content[600:], b"", content + b"x", b"?" * 300]
        )
    )  # fmt: skip
    made = chunk_message(sha256, offset, data)
    return draw(st.sampled_from([made] * 5 + [made[:-1], made + b"\x20\x01", b"\xff\xff"]))


attempts = st.lists(st.lists(messages(), max_size=6), max_size=6)


@examples(100)
@given(data=st.data())
def test_a_stream_of_any_messages(pieces: PieceBed, data: st.DataObject) -> None:
    made = attempts.map(script)
    pieces.feed(data.draw(made | bytes_like(pieces.target().seeds)))


class HostileServer:
    """A real gRPC server that sends whatever bytes it is told as messages of the stream."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self.messages: list[bytes] = []
        self.channel, self._server = self._runner.run(self._start())

    async def _start(self) -> tuple[Any, Any]:
        async def fetch(_request: bytes, _context: Any) -> Any:
            for message in self.messages:
                yield message

        server = grpc.aio.server()
        handler = grpc.unary_stream_rpc_method_handler(fetch)
        server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    "muster.v1.DeviceService", {"FetchPieces": handler}
                )
            ]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return grpc.aio.insecure_channel(f"127.0.0.1:{port}"), server

    def fetch(self, pieces: PieceBed, messages: list[bytes]) -> None:
        """One fetch from it, which always sends these. Raises LinkError."""
        self.messages = messages
        source = GrpcPieceSource(self.channel, "here", "cam-1", GrpcLimits())
        self._runner.run(PieceFetch(PIECES, pieces.ports(source), LIMITS).run())

    async def _stop(self) -> None:
        await self.channel.close()
        await self._server.stop(None)

    def stop(self) -> None:
        self._runner.run(self._stop())
        self._runner.close()


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    made = HostileServer()
    yield made
    made.stop()


@examples(20)
@given(data=st.data())
def test_a_stream_of_any_bytes_over_real_grpc(
    pieces: PieceBed, server: HostileServer, data: st.DataObject
) -> None:
    pieces.store.keep_only(frozenset())
    sent = data.draw(st.lists(messages() | st.binary(max_size=50), max_size=6))
    with refusals(LinkError):
        server.fetch(pieces, sent)
    pieces.check()


def test_real_grpc_brings_what_is_right(pieces: PieceBed, server: HostileServer) -> None:
    """Else the test above would be about an error of its own."""
    pieces.store.keep_only(frozenset())
    right = [
        chunk_message(piece.sha256, 0, content) for piece, content in zip(PIECES, CONTENTS, strict=True)
    ]  # fmt: skip
    with pytest.raises(
        LinkError
    ):  # it always sends everything, and only three are asked for at once
        server.fetch(pieces, right)
    assert [pieces.store.has(piece.sha256) for piece in PIECES[:3]] == [True] * 3
