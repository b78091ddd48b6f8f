"""The short way of REST: the same answers as the long one, and only for what is usual."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from agent.runtime.registry import Registry
from agent.serving.listen import bind_tcp
from agent.serving.placement import PlacementLimits
from agent.serving.protocol import InferenceProtocol
from agent.serving.rest.app import RestApp, RestLimits
from agent.serving.rest.server import RestServer
from agent.serving.watchdog import RunWatchdog
from tests.support.onnx_models import MadeBundle, scale_bundle

LIMIT_S = 60.0
INFER = "/v2/models/scale/infer"
X = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
GOOD = json.dumps({"inputs": [{**X, "data": [1, 2, 3, 4]}]}).encode()
HEAD = json.dumps({"inputs": [{**X, "parameters": {"binary_data_size": 16}}]}).encode()
BINARY = f"Inference-Header-Content-Length: {len(HEAD)}\r\n"
ANSWER = [2.0, 4.0, 6.0, 8.0]
ALWAYS_INLINE = PlacementLimits(fast_s=1e9, slow_s=1e9)


class Counting(RestApp):
    """Counts what comes the long way."""

    long = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.long += 1
        await super().__call__(scope, receive, send)


class Served:
    def __init__(self, made: MadeBundle) -> None:
        self.made = made
        self.registry = Registry()
        self.registry.load(made.path, made.sha256)
        self.registry.activate("scale", made.sha256)
        self.watchdog = RunWatchdog(max_run_s=LIMIT_S, look_every_s=1)
        protocol = InferenceProtocol(self.registry, self.watchdog)
        self.app = Counting(protocol, RestLimits(placement=ALWAYS_INLINE))
        bound = bind_tcp("127.0.0.1:0", "a test")
        self.port = bound.getsockname()[1]
        self.server = RestServer(self.app, [bound], 1.0)

    def open(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(scale_bundle(tmp_path_factory.mktemp("short") / "b"))
    made.server.start()
    with made.open() as opened:
        ask(opened, request(GOOD.ljust(1000)))  # measured: up to this size it runs on the loop
    yield made
    made.server.stop(LIMIT_S)
    made.watchdog.stop()
    made.registry.close()


def request(body: bytes, headers: str = "", path: str = INFER, line: str = "HTTP/1.1") -> bytes:
    head = f"POST {path} {line}\r\nHost: 127.0.0.1\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def answer(opened: socket.socket, buffer: bytearray) -> tuple[int, Any]:
    """Status and JSON of the next answer."""
    while b"\r\n\r\n" not in buffer:
        got = opened.recv(1 << 16)
        assert got, "the connection ended"
        buffer += got
    head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
    said = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
    size = int(said[b"content-length"])
    while len(rest) < size:
        got = opened.recv(1 << 16)
        assert got, "the connection ended"
        rest += got
    buffer[:] = rest[size:]
    body = json.loads(rest[: int(said.get(b"inference-header-content-length", size))])
    return int(head.split()[1]), body


def ask(opened: socket.socket, *parts: bytes) -> tuple[int, Any]:
    for part in parts:
        opened.sendall(part)
    return answer(opened, bytearray())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(GOOD), 200),
        (request(GOOD, "Connection: keep-alive\r\n"), 200),
        (request(HEAD + bytes(16), BINARY), 200),
        (request(b"{"), 400),
        (request(b""), 400),
        (request(HEAD + bytes(15), BINARY), 400),
        (request(json.dumps({"inputs": [{**X, "data": [1]}]}).encode()), 400),
    ],
)  # fmt: skip
def test_the_usual_goes_the_short_way_with_the_same_answer(
    served: Served, sent: bytes, status: int
) -> None:
    with served.open() as opened:
        before = served.app.long
        short = ask(opened, sent)
        assert (short[0], served.app.long) == (status, before)
        assert ask(opened, sent.replace(b" HTTP/1.1", b"? HTTP/1.1", 1)) == short
        assert served.app.long == before + 1


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([request(GOOD.ljust(1001))], 200),
        ([request(GOOD, "Connection: close\r\n")], 200),
        ([request(GOOD, line="HTTP/1.0")], 200),
        ([request(GOOD, "Content-Encoding: identity\r\n")], 200),
        ([request(GOOD)[:-10], request(GOOD)[-10:]], 200),
        ([request(GOOD, path="/v2/models/sc%61le/infer")], 200),
        ([request(GOOD, path="/v2/models/nothing/infer")], 404),
        ([request(GOOD, "Origin: https://page.example\r\n")], 403),
        ([request(GOOD).replace(b"127.0.0.1", b"192.0.2.1")], 403),
        ([request(GOOD, "Inference-Header-Content-Length: many\r\n")], 400),
        ([b"POST %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
          % (INFER.encode(), len(GOOD), GOOD)], 200),
    ],
)  # fmt: skip
def test_the_unusual_goes_the_long_way(served: Served, parts: list[bytes], status: int) -> None:
    with served.open() as opened:
        before = served.app.long
        if len(parts) > 1:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        got, body = ask(opened, *parts)
        assert got == status
        assert status != 200 or body["outputs"][0]["data"] == ANSWER
        # Two parts may have come in one read after all.
        assert served.app.long - before in ((1,) if len(parts) == 1 else (0, 1))


def test_requests_in_a_row_are_answered_in_their_order(served: Served) -> None:
    long = request(GOOD, path="/v2/models/nothing/infer")
    with served.open() as opened:
        opened.sendall(request(GOOD) + long + request(b"{") + request(GOOD))
        buffer = bytearray()
        assert [answer(opened, buffer)[0] for _ in range(4)] == [200, 404, 400, 200]


def test_a_held_model_is_waited_for_on_the_long_way(served: Served) -> None:
    made = served.made
    served.registry.unload("scale", made.sha256, hold_s=LIMIT_S)
    with served.open() as opened, served.open() as other:
        before = served.app.long
        opened.sendall(request(GOOD))
        while served.registry.waiting < 1:
            assert ask(other, b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200
        assert served.app.long > before
        served.registry.load(made.path, made.sha256)
        served.registry.activate("scale", made.sha256)
        assert answer(opened, bytearray())[0] == 200
