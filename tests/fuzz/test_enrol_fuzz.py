"""Requests to enrol, from strangers: each is answered, or refused by a status that we chose, whatever it holds."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.api.readable import ReadableRequests
from protos import enrol_pb2, enrol_pb2_grpc
from protos.identity import enrol_message, lapsed_message
from tests.fuzz.enrol_targets import METHODS, REFUSALS, EnrolBed, csrs, identity_keys, signature
from tests.fuzz.mutations import bytes_like, examples

CSRS = csrs()
KEYS = identity_keys()
SAME = [der for name, der in CSRS.items() if not name.startswith(("rsa", "dsa", "a certificate"))]
"""Those that are the same in each run."""
names = st.sampled_from(
    ["cam-1", "cam-2", "", "CAM", "../x", "a" * 41, "x" * 60_000, "cam-1\0", "\u202e", "fleet", "'; --"]
)  # fmt: skip
chunks = st.sampled_from(
    [b"", b"x", b"\0" * 64, b"0" * 5000, b"\x30\x80" * 2000, b"\x30\x84\xff\xff\xff\xff"]
)


@examples(150)
@given(data=st.data())
def test_a_message_whose_bytes_were_changed(enrol: EnrolBed, data: st.DataObject) -> None:
    enrol.feed(data.draw(bytes_like(enrol.target().seeds)))


@examples(60)
@given(data=st.data())
def test_a_request_with_other_fields(enrol: EnrolBed, data: st.DataObject) -> None:
    csr = data.draw(st.sampled_from(SAME) | bytes_like(SAME, most=2) | chunks)
    changes: dict[str, Any] = {"csr": csr}
    for field, values in (
        ("token", st.sampled_from(["", "x" * 10_000, "\0", "muster1.x.y"])),
        ("device_class", names),
        ("identity_key", st.sampled_from(list(KEYS.values())) | chunks),
        ("proof", chunks | bytes_like([signature(enrol_message("cam-1", csr))], most=2)),
    ):
        if data.draw(st.integers(0, 2)) == 0:
            changes[field] = data.draw(values)
    asked = enrol.enrol_request(data.draw(names), **changes)
    enrol.ask("Enrol", asked)


@examples(40)
@given(data=st.data())
def test_a_renewal_with_other_fields(enrol: EnrolBed, data: st.DataObject) -> None:
    csr = data.draw(bytes_like(SAME, most=2) | st.sampled_from(SAME))
    enrol.ask("Renew", enrol_pb2.RenewRequest(csr=csr))
    device_id = data.draw(names)
    nonce = enrol.nonce() if data.draw(st.booleans()) else data.draw(chunks)
    proof = data.draw(chunks | st.just(signature(lapsed_message("cam-2", nonce, csr))))
    enrol.ask(
        "RenewLapsed",
        enrol_pb2.RenewLapsedRequest(device_id=device_id, nonce=nonce, csr=csr, proof=proof),
    )


@pytest.mark.parametrize("name", CSRS)
def test_a_signing_request_of_another_kind(enrol: EnrolBed, name: str) -> None:
    """A token and a proof that are good, over a request that is not; one of P-256 is taken with any digest."""
    status = enrol.ask("Enrol", enrol.enrol_request("cam-3", csr=CSRS[name]))
    expected = "UNAUTHENTICATED" if name == "sha-512" else "INVALID_ARGUMENT"  # cam-3 has no token
    assert status.name == expected


@pytest.mark.parametrize("name", KEYS)
def test_an_identity_key_of_another_kind(enrol: EnrolBed, name: str) -> None:
    status = enrol.ask("Enrol", enrol.enrol_request(identity_key=KEYS[name]))
    assert (
        status is grpc.StatusCode.INVALID_ARGUMENT
    )  # "sha-512" is of P-256, and the proof is not by it


def test_what_is_fuzzed_is_valid_before_it_is_changed(enrol: EnrolBed) -> None:
    assert enrol.ask("Enrol", enrol.enrol_request()) is grpc.StatusCode.OK
    for seed in enrol.target().seeds:
        enrol.feed(seed)


# --- the real server ------------------------------------------------------------------------------


class Stranger:
    """A client that sends any bytes as a message, to the service in a real gRPC server."""

    def __init__(self, bed: EnrolBed) -> None:
        self._bed = bed
        self._channel, self._server = bed.run(self._start())

    async def _start(self) -> tuple[Any, Any]:
        server = grpc.aio.server(interceptors=[ReadableRequests()])
        add: Any = enrol_pb2_grpc.add_EnrolServiceServicer_to_server
        add(self._bed.service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return grpc.aio.insecure_channel(f"127.0.0.1:{port}"), server

    def ask(self, method: str, message: bytes) -> grpc.StatusCode:
        async def asking() -> grpc.StatusCode:
            try:
                await self._channel.unary_unary(f"/muster.v1.EnrolService/{method}")(message)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        return self._bed.run(asking())

    def stop(self) -> None:
        async def stopping() -> None:
            await self._channel.close()
            await self._server.stop(None)

        self._bed.run(stopping())


@pytest.fixture
def stranger(enrol: EnrolBed) -> Iterator[Stranger]:
    made = Stranger(enrol)
    yield made
    made.stop()


def test_any_bytes_to_the_real_server(enrol: EnrolBed, stranger: Stranger) -> None:
    """UNKNOWN would be an exception that nobody caught."""

    @examples(60)
    @given(st.sampled_from(list(METHODS)), bytes_like([seed[1:] for seed in enrol.target().seeds]))
    def asked(method: str, message: bytes) -> None:
        status = stranger.ask(method, message)
        assert status in {*REFUSALS, grpc.StatusCode.OK}, status

    asked()
    good = enrol.enrol_request().SerializeToString()
    assert stranger.ask("Enrol", good) is grpc.StatusCode.OK
    assert stranger.ask("Enrol", b"\xff" * 30) is grpc.StatusCode.INVALID_ARGUMENT
