"""One prepared request and its answer, in the cheapest form that a way into a server takes.

A usual client library needs more processor time a request than a good server does. So request bytes are prepared once;
``benchmarks.load`` sends them, and ``ask_once`` gives back a body for checking that every server answers the same.
"""

import http.client
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import grpc

__all__ = ["Target", "ask_once", "grpc_frame"]

GRPC_PATH: Final = "/inference.GRPCInferenceService/ModelInfer"
_CHANNEL: Final = (
    (
        "grpc.use_local_subchannel_pool",
        1,
    ),  # else one refused connection holds up the next for a second
    ("grpc.max_receive_message_length", -1),
)


@dataclass(frozen=True, slots=True)
class Target:
    """One prepared request. ``kind`` is "grpc" or "rest"; ``body`` is the message or the HTTP body."""

    kind: str
    port: int
    body: bytes
    path: str = GRPC_PATH
    headers: tuple[tuple[str, str], ...] = ()


def ask_once(target: Target, timeout_s: float = 10.0) -> bytes:
    """The body of one answer, b"" when it is a failure. Raises OSError."""
    return (_grpc if target.kind == "grpc" else _rest)(target, timeout_s)


def grpc_frame(message: bytes) -> bytes:
    """The message as HTTP/2 carries it: not packed, its length, itself."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _grpc(target: Target, timeout_s: float) -> bytes:
    with grpc.insecure_channel(f"127.0.0.1:{target.port}", _CHANNEL) as channel:
        call = channel.unary_unary(
            target.path, request_serializer=bytes, response_deserializer=bytes
        )
        try:
            return bytes(call(target.body, timeout=timeout_s))
        except grpc.RpcError:
            return b""


def _rest(target: Target, timeout_s: float) -> bytes:
    with closing(http.client.HTTPConnection("127.0.0.1", target.port, timeout_s)) as connection:
        connection.request("POST", target.path, target.body, dict(target.headers))
        answer = connection.getresponse()
        body = answer.read()
        return body if answer.status == 200 else b""
