"""Our HTTP/2 front end in this process, and a client that sends whatever bytes a test wants."""

import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hpack import Decoder, Encoder

from agent.bundle import Stage, TensorSpec
from agent.runtime.registry import Registry
from agent.serving.http2.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    PREFACE,
    Frame,
    FrameReader,
    Kind,
    frame,
)
from agent.serving.http2.limits import CallLimits, FrontLimits, Http2Limits
from agent.serving.http2.server import Http2Front
from agent.serving.protocol import InferenceProtocol
from agent.serving.service import SERVICE, InferenceService
from agent.serving.watchdog import RunWatchdog
from protos import inference_pb2 as oip
from tests.support.onnx_models import BundleMaker, loop_model, scale_bundle

LIMIT_S = 60.0
LIVE = f"/{SERVICE}/ServerLive"
INFER = f"/{SERVICE}/ModelInfer"
STREAM = f"/{SERVICE}/ModelStreamInfer"
EMPTY = b"\0\0\0\0\0"
"""A message without a field, with its prefix."""

Fields = Sequence[tuple[str, str]]


def fields(path: str = LIVE, **changes: str | None) -> Fields:
    """A call's head; keywords change it (``_`` for ``-``, a leading ``x_`` for ``:``), None leaves one out."""
    said: dict[str, str | None] = {
        ":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost",
        "content-type": "application/grpc", "te": "trailers",
    }  # fmt: skip
    for name, value in changes.items():
        said[":" + name[2:] if name.startswith("x_") else name.replace("_", "-")] = value
    return [(name, value) for name, value in said.items() if value is not None]


def block(said: Fields) -> bytes:
    """Packed without touching the compression state."""
    encoder = Encoder()
    encoder.header_table_size = 0
    return bytes(encoder.encode([(name, value) for name, value in said], huffman=False))


def head(stream_id: int, said: Fields | None = None, flags: int = END_HEADERS) -> bytes:
    return frame(Kind.HEADERS, flags, stream_id, block(fields() if said is None else said))


def prefixed(message: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(message)) + message


def data(stream_id: int, payload: bytes = EMPTY, flags: int = END_STREAM) -> bytes:
    return frame(Kind.DATA, flags, stream_id, payload)


def call(stream_id: int, path: str = LIVE, message: bytes = b"", **changes: str | None) -> bytes:
    """A whole call in two frames."""
    return head(stream_id, fields(path, **changes)) + data(stream_id, prefixed(message))


def scale_request(rows: int = 1, **named: Any) -> bytes:
    """A request to the model that doubles four numbers a row."""
    request = oip.ModelInferRequest(model_name="scale", **named)
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    request.raw_input_contents.append(np.ones((rows, 4), np.float32).tobytes())
    return bytes(request.SerializeToString())


def loop_request(rounds: int, **named: Any) -> bytes:
    """A request to the model that counts so far."""
    request = oip.ModelInferRequest(model_name="loop", **named)
    request.inputs.add(name="rounds", datatype="INT64", shape=[])
    request.raw_input_contents.append(np.array(rounds, np.int64).tobytes())
    return bytes(request.SerializeToString())


class Served:
    """The front end with two models: ``scale``, and ``loop``, which takes as long as its input says."""

    def __init__(
        self,
        folder: Path,
        calls: CallLimits | None = None,
        limits: FrontLimits | None = None,
        http2: Http2Limits | None = None,
    ) -> None:
        self.registry = Registry()
        loop = BundleMaker(
            models={"model.onnx": loop_model()},
            stages=[Stage("main", "model.onnx", (("rounds", "rounds"),), (("y", "y"),))],
            inputs=[TensorSpec("rounds", "INT64", ())],
            outputs=[TensorSpec("y", "INT64", ())],
            model="loop",
        ).write(folder / "loop")
        self.scale = scale_bundle(folder / "scale")
        for made in (loop, self.scale):
            self.registry.load(made.path, made.sha256)
            self.registry.activate(made.manifest.model, made.sha256)
        self.watchdog = RunWatchdog(max_run_s=LIMIT_S, look_every_s=0.01)
        service = InferenceService(InferenceProtocol(self.registry, self.watchdog))
        self.front = Http2Front(
            service, "127.0.0.1:0", "", calls or CallLimits(pool_threads=2), limits, http2
        )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.front.port}"

    def __enter__(self) -> "Served":
        self.front.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.front.stop(0.0)
        self.front.wait()
        self.watchdog.stop()
        self.registry.close()

    def peer(self, settings: Mapping[int, int] | None = None) -> "Peer":
        return Peer(self.front.port, settings or {})


class Peer:
    """A client of HTTP/2 that does nothing by itself."""

    def __init__(self, port: int, settings: Mapping[int, int] | None) -> None:
        """``settings`` None: sends nothing, not even the preface."""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
        self._reader = FrameReader(1 << 24)
        self._decoder = Decoder()
        self._frames: Iterator[Frame] = iter(())
        if settings is not None:
            payload = b"".join(struct.pack(">HI", *one) for one in settings.items())
            self.socket.sendall(PREFACE + frame(Kind.SETTINGS, 0, 0, payload))

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def frames(self) -> Iterator[Frame]:
        """What comes, until the end."""
        while True:
            yield from self._frames
            try:
                got = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return
            if not got:
                return
            self._frames = iter(list(self._reader.feed(got)))

    def until(self, wanted: Callable[[Frame], bool]) -> list[Frame]:
        """What comes, up to the first frame that is wanted, else up to the end."""
        seen = []
        for one in self.frames():
            seen.append(one)
            if wanted(one):
                break
        return seen

    def until_pong(self) -> list[Frame]:
        """What comes in answer to everything sent before: a PING goes after it."""
        self.send(frame(Kind.PING, 0, 0, b"the end."))
        return self.until(lambda one: one.kind == Kind.PING and bool(one.flags & ACK))[:-1]

    def answer(self, stream_id: int) -> tuple[dict[str, str], bytes]:
        """Fields (head and trailers) and message of one answer. No flow control."""
        said: dict[str, str] = {}
        body = b""
        for one in self.frames():
            if one.kind == Kind.HEADERS:
                found = dict(self._decoder.decode(one.payload))
                if one.stream_id == stream_id:
                    said.update(found)
            if one.stream_id != stream_id:
                continue
            if one.kind == Kind.DATA:
                body += one.payload
            if one.kind == Kind.RST_STREAM:
                return {**said, "reset": str(int.from_bytes(one.payload, "big"))}, body
            if one.flags & END_STREAM:
                break
        return said, body[5:]


def code_of(one: Frame) -> int:
    """Of RST_STREAM or GOAWAY."""
    return int.from_bytes(
        one.payload[-4:] if one.kind == Kind.RST_STREAM else one.payload[4:8], "big"
    )
