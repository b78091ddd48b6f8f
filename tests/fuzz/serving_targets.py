"""What applications send to the model server: REST bodies, gRPC messages and HTTP/2 itself.

HTTP/2 has more tests of this kind beside it (``tests/agent/serving/http2/test_fuzz.py``), where its own rules are
known; here it is a target for the longer runs.
"""

import asyncio
import gzip
import json
import zlib
from collections.abc import Iterator, MutableMapping
from functools import cache, partial
from typing import Any, Final

import numpy as np

from agent.runtime.errors import InputContractError
from agent.runtime.registry import Registry
from agent.serving.errors import MalformedMessageError, OverloadError, WireError
from agent.serving.http2.connection import Connection
from agent.serving.http2.events import DataCame, RequestCame
from agent.serving.http2.frames import PREFACE, Kind, frame
from agent.serving.http2.grpc_messages import ANSWER_HEAD, OK_TRAILERS, CallHead, read_head
from agent.serving.http2.limits import Http2Limits
from agent.serving.protocol import InferenceProtocol
from agent.serving.rest.body import Body, BodyLimits, read_body
from agent.serving.rest.codec import parse_request
from agent.serving.service import InferenceService, Method
from agent.serving.service import Kind as MethodKind
from agent.serving.watchdog import RunWatchdog
from protos import inference_pb2 as oip
from tests.fuzz.holes import Target, refusals
from tests.support.http2 import LIVE, call, scale_request

__all__ = [
    "BODIES",
    "feed_body",
    "feed_http2",
    "feed_infer",
    "feed_rest",
    "rest_seed",
    "serving_targets",
]

BODIES: Final = BodyLimits(max_bytes=64 << 10, max_bytes_together=128 << 10)
_ENCODINGS: Final = (b"identity", b"gzip", b"deflate", b"br")
_METHODS: Final = {LIVE: Method(LIVE, MethodKind.PLAIN, bytes)}
_LIMITS: Final = Http2Limits(max_frame_bytes=1 << 14, max_streams=4, allowance=50)


def rest_seed() -> dict[str, Any]:
    """A request with everything that one can have."""
    return {
        "id": "r-1",
        "parameters": {"binary_data_output": False, "customer": "x", "n": 3},
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1.0, 2], [3, 4]]},
            {"name": "t", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]},
            {"name": "n", "datatype": "INT8", "shape": [1], "parameters": {}, "data": [1]},
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}],
    }


def feed_rest(data: bytes) -> None:
    """``data``: two bytes that say how much of the rest is JSON (0: all of it), and the body."""
    split, body = int.from_bytes(data[:2], "big"), data[2:]
    with refusals(InputContractError):
        parse_request(body, split or None).decode()


def feed_body(data: bytes) -> None:
    """``data``: a number of a content encoding, one of how the body is cut, and the body."""
    encoding = _ENCODINGS[(data[0] if data else 0) % len(_ENCODINGS)]
    size = 1 + (data[1] if len(data) > 1 else 0)
    parts = [data[at : at + size] for at in range(2, min(len(data), 2 + 64 * size), size)] or [b""]
    left = iter(_messages(parts))
    bodies = Body(BODIES)

    async def receive() -> MutableMapping[str, Any]:
        return next(left)

    with refusals(WireError, OverloadError):
        body, held = asyncio.run(read_body([(b"content-encoding", encoding)], receive, bodies))
        assert len(body) <= BODIES.max_bytes
        bodies.give_back(held)
    assert bodies._held == 0, "what was refused is still counted"


def _messages(parts: list[bytes]) -> Iterator[MutableMapping[str, Any]]:
    for number, part in enumerate(parts):
        more = number + 1 < len(parts)
        yield {"type": "http.request", "body": part, "more_body": more}


def feed_infer(data: bytes) -> None:
    """``data``: a ``ModelInferRequest``."""
    with refusals(InputContractError, MalformedMessageError):
        _service().read(data).decode()


@cache
def _service() -> InferenceService:
    """Without a model: what is read is not asked."""
    return InferenceService(
        InferenceProtocol(Registry(), RunWatchdog(max_run_s=60, look_every_s=60))
    )


def feed_http2(data: bytes) -> None:
    """``data``: what a peer sends."""
    now = iter(range(10**9))
    made: Connection[CallHead] = Connection(
        partial(read_head, methods=_METHODS),
        _LIMITS,
        lambda: next(now) * 1e-6,
        max_write_bytes=4096,
    )
    for at in range(0, len(data), 200):
        for event in made.receive(data[at : at + 200]):
            if isinstance(event, DataCame):
                made.consumed(event.stream_id, len(event.data))
            if isinstance(event, DataCame | RequestCame) and event.ended:
                made.send(event.stream_id, ANSWER_HEAD, (b"x" * 5000,), OK_TRAILERS)
        assert made.streams <= _LIMITS.max_streams
        made.take()
        made.pump()


def serving_targets() -> list[Target]:
    """Everything of this module."""
    said = json.dumps(rest_seed()).encode()
    binary = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [4], "parameters": {"binary_data_size": 16}}]}
    ).encode()  # fmt: skip
    bodies = [
        b"\0\x20" + said, b"\x01\xff" + gzip.compress(said), b"\x02\x10" + zlib.compress(said),
    ]  # fmt: skip
    typed = oip.ModelInferRequest(model_name="m", id="r")
    typed.inputs.add(name="x", datatype="FP32", shape=[2]).contents.fp32_contents.extend([1, 2])
    begun = PREFACE + frame(Kind.SETTINGS, 0, 0)
    return [
        Target(
            "rest",
            [
                bytes(2) + said,
                len(binary).to_bytes(2, "big") + binary + np.ones(4, "<f4").tobytes(),
            ],
            feed_rest,
        ),
        Target("rest-body", bodies, feed_body),
        Target("grpc-infer", [scale_request(2, id="r"), typed.SerializeToString()], feed_infer),
        Target("http2", [begun + call(1) + call(3, message=b"ab"), begun], feed_http2),
    ]
