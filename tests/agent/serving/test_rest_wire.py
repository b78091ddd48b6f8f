"""REST as bytes on a socket: what is no request of the protocol, what is too much, and who may ask."""

import asyncio
import gzip
import http.client
import json
import os
import socket
import stat
import zlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from agent.adapters.model_server import ModelServerLimits, OtherFronts, ProcessModelServer
from agent.bundle import Objectives, Stage, TensorSpec
from agent.errors import ConfigError, DeviceError
from tests.support.conformance import UnixConnection
from tests.support.onnx_models import BundleMaker, loop_model, scale_bundle

LIMIT_S = 90.0
INFER = "/v2/models/scale/infer"
X = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
GOOD = {"inputs": [{**X, "data": [1, 2, 3, 4]}]}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProcessModelServer]:
    folder = tmp_path_factory.mktemp("rest")
    async with ProcessModelServer("127.0.0.1:0", fronts=OtherFronts("127.0.0.1:0")) as started:
        scale = scale_bundle(folder / "scale")
        loop = BundleMaker(
            models={"model.onnx": loop_model()},
            stages=[Stage("main", "model.onnx", (("rounds", "rounds"),), (("y", "y"),))],
            inputs=[TensorSpec("rounds", "INT64", ())],
            outputs=[TensorSpec("y", "INT64", ())],
            objectives=Objectives(latency_ms=1.0),
            model="loop",
        ).write(folder / "loop")
        for made in (scale, loop):
            await started.load(str(made.path), made.sha256)
            await started.activate(made.manifest.model, made.sha256)
        yield started


def exchange(
    address: str, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Any, Mapping[str, str]]:
    """Status, JSON (or bytes) and headers of one request."""
    connection = http.client.HTTPConnection(address, timeout=LIMIT_S)
    raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, raw, dict(headers or {}))
    response = connection.getresponse()
    data = response.read()
    found = {key.lower(): value for key, value in response.getheaders()}
    connection.close()
    if found.get("content-type") == "application/json":
        return response.status, json.loads(data), found
    return response.status, data, found


async def ask(server: ProcessModelServer, *arguments: Any) -> tuple[int, Any, Mapping[str, str]]:
    return await asyncio.to_thread(exchange, server.http_address, *arguments)


def changed(**changes: Any) -> Any:
    return {"inputs": [{**X, "data": [1, 2, 3, 4], **changes}]}


def binary(size: int, tail: bytes, header_length: int | None = None) -> tuple[bytes, Any]:
    head = json.dumps({"inputs": [{**X, "parameters": {"binary_data_size": size}}]}).encode()
    length = len(head) if header_length is None else header_length
    return head + tail, {"Inference-Header-Content-Length": str(length)}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "must be a JSON object"),
        ({}, "'inputs' is missing or empty"),
        ({"inputs": {}}, "'inputs' must be a list of objects"),
        ({"inputs": [1]}, "'inputs' must be a list of objects"),
        ({"inputs": [X] * 257}, "more than the 256"),
        ({**GOOD, "id": 7}, "'id' must be text, got 7"),
        ({**GOOD, "parameters": []}, "'parameters' must be an object"),
        ({**GOOD, "parameters": {"a": None}}, "parameter 'a' must be text, a number"),
        ({**GOOD, "parameters": {"timeout": -1}}, "'timeout' must be a number of microseconds"),
        ({**GOOD, "parameters": {"binary_data_output": 1}}, "must be true or false"),
        ({**GOOD, "outputs": [{"name": "y"}] * 2}, "asked for twice"),
        (changed(name=None), "an input: 'name' must be text, got nothing"),
        (changed(datatype="FLOAT"), "'FLOAT' is unknown"),
        (changed(shape=[1, -1]), "'shape' must be a list of sizes"),
        (changed(shape=[1, True]), "'shape' must be a list of sizes"),
        (changed(shape=[1] * 33), "more than 32 dimensions"),
        (changed(shape=[2**62, 2**62]), "does not fit the 4 values"),
        (changed(data=None), "'data' must be a list, got nothing"),
        (changed(data=[1, 2, 3]), "shape [1, 4] does not fit the 3 values"),
        (changed(data=[[1, 2], [3, 4]]), "does not have the shape [1, 4]"),
        (changed(data=[[[1, 2, 3, 4]]]), "does not have the shape [1, 4]"),
        (changed(data=[[1, 2, 3, [4]]]), "a list among the values is not FP32"),
        (changed(data=[1, 2, 3, "4"]), "text among the values is not FP32"),
        (changed(data=[1, 2, 3, True]), "true or false among the values is not FP32"),
        (changed(data=[1, 2, 3, None]), "null among the values is not FP32"),
        (changed(data=[1, 2, 3, 1e39]), "a value does not fit FP32"),
        (changed(data=[1, 2, 3, 10**400]), "a value does not fit FP32"),
        (changed(parameters={"binary_data_size": 16}), "came binary and as JSON data"),
        (changed(parameters={"shared_memory_region": "a"}), "is not supported"),
    ],
)
async def test_what_is_no_request_is_refused(
    server: ProcessModelServer, body: Any, says: str
) -> None:
    status, said, _ = await ask(server, "POST", INFER, body)
    assert (status, list(said)) == (400, ["error"])
    assert says in said["error"]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (binary(16, b"\0" * 15), "binary_data_size 16 goes beyond the body"),
        (binary(16, b"\0" * 17), "1 bytes follow the last binary input"),
        (binary(12, b"\0" * 12), "takes 16 bytes, got 12"),
        (binary(-1, b""), "binary_data_size must be a number of bytes"),
        (binary(16, b"\0" * 16, 10), "not JSON"),
        (binary(16, b"\0" * 16, 10**9), "but the body has"),
        ((b"{}", {"Inference-Header-Content-Length": "x"}), "must be a number of bytes"),
    ],
)
async def test_binary_tensors_that_do_not_add_up_are_refused(
    server: ProcessModelServer, request_: tuple[bytes, Any], says: str
) -> None:
    status, said, _ = await ask(server, "POST", INFER, *request_)
    assert status == 400
    assert says in said["error"]


async def test_nested_data_and_unknown_keys_are_taken(server: ProcessModelServer) -> None:
    body = {**changed(data=[[1, 2, 3, 4]], note="mine"), "made_by": "hand"}
    status, said, _ = await ask(server, "POST", INFER, body)
    assert (status, said["outputs"][0]["data"]) == (200, [2, 4, 6, 8])


@pytest.mark.parametrize("pad", range(4))
async def test_binary_tensors_may_begin_anywhere(server: ProcessModelServer, pad: int) -> None:
    sent = np.array([1, 2, 3, 4], np.float32)
    body = {
        "id": "x" * pad,
        "inputs": [{**X, "parameters": {"binary_data_size": 16}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(body).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    status, data, found = await ask(server, "POST", INFER, head + sent.tobytes(), headers)
    length = int(found["inference-header-content-length"])
    assert status == 200
    assert json.loads(data[:length])["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert np.array_equal(np.frombuffer(data[length:], np.float32), sent * 2)


async def test_not_finite_numbers_go_as_most_libraries_write_them(
    server: ProcessModelServer,
) -> None:
    body = json.dumps(changed(data=[float("nan"), float("inf"), 1, 2])).encode()
    status, said, _ = await ask(server, "POST", INFER, body)
    assert (status, str(said["outputs"][0]["data"])) == (200, "[nan, inf, 2.0, 4.0]")


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/", 404, "begins at /v2"),
        ("GET", "/v1/models/scale", 404, "begins at /v2"),
        ("GET", "/v2/models", 404, "begins at /v2"),
        ("GET", "/v2/models/scale/config", 404, "begins at /v2"),
        ("GET", "/v2/models/scale/versions/", 404, "begins at /v2"),
        ("GET", "/v2/models/%2e%2e%2fscale", 404, "begins at /v2"),
        ("GET", "/v2/models/..", 404, "there is no model '..'"),
        ("GET", INFER, 405, "takes POST, not GET"),
        ("POST", "/v2/health/live", 405, "takes GET, not POST"),
        ("GET", "/v2/repository/index", 405, "takes POST, not GET"),
    ],
)
async def test_other_paths_and_methods(
    server: ProcessModelServer, method: str, path: str, status: int, says: str
) -> None:
    got, said, headers = await ask(server, method, path, b"" if method == "POST" else None)
    assert got == status
    assert says in said["error"]
    assert ("allow" in headers) == (status == 405)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "models.example:8474"}, 403),
        ({"Host": "192.168.1.2"}, 403),
        ({"Origin": "https://page.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:8474", "Origin": "http://127.0.0.1:3000"}, 200),
        ({"Host": "[::1]:8474"}, 200),
    ],
)
async def test_a_page_from_elsewhere_cannot_ask_through_a_browser(
    server: ProcessModelServer, headers: Mapping[str, str], status: int
) -> None:
    got, said, _ = await ask(server, "GET", "/v2", None, headers)
    assert got == status
    assert status == 200 or "is not this machine" in said["error"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "says"),
    [
        (b"", {"Content-Length": str((64 << 20) + 1)}, 413, "larger than the 67108864 bytes"),
        (b"x", {"Content-Encoding": "br"}, 415, "use gzip or deflate"),
        (b"not packed", {"Content-Encoding": "gzip"}, 400, "the body is not gzip"),
        (gzip.compress(b"{}")[:-4], {"Content-Encoding": "gzip"}, 400, "one whole gzip stream"),
        (gzip.compress(bytes(65 << 20)), {"Content-Encoding": "gzip"}, 413, "larger than"),
        (zlib.compress(b"{}"), {"Content-Encoding": "deflate"}, 400, "'inputs' is missing"),
    ],
    ids=["too long", "unknown packing", "not packed", "cut off", "a bomb", "good deflate"],
)
async def test_bodies_are_bounded_and_unpacked_to_the_same_bound(
    server: ProcessModelServer, body: bytes, headers: Mapping[str, str], status: int, says: str
) -> None:
    got, said, _ = await ask(server, "POST", INFER, body, headers)
    assert got == status
    assert says in said["error"]


async def test_both_fronts_count_in_one_place(server: ProcessModelServer) -> None:
    await server.drain()
    await ask(server, "POST", INFER, GOOD)
    await ask(server, "POST", INFER, changed(data=[1]))
    windows = {window.model: window for window in await server.drain()}
    assert (windows["scale"].requests, windows["scale"].input_violations) == (1, 1)


async def test_a_run_that_takes_too_long_ends_and_holds_nobody_up(
    server: ProcessModelServer,
) -> None:
    body = {
        "inputs": [{"name": "rounds", "datatype": "INT64", "shape": [], "data": [2**60]}],
        "parameters": {"timeout": 300_000},
    }
    slow = asyncio.create_task(ask(server, "POST", "/v2/models/loop/infer", body))
    connection_alive, _, _ = await ask(server, "GET", "/v2/health/live")
    status, _, _ = await ask(server, "POST", INFER, GOOD)
    assert (connection_alive, status, slow.done()) == (200, 200, False)
    status, said, _ = await slow
    assert status == 504
    assert said["error"].startswith("model 'loop': stage 'main' failed")


async def test_an_index_of_what_answers(server: ProcessModelServer) -> None:
    for body, status in ((None, 200), ({"ready": True}, 200), ({"ready": 1}, 400), (b"{", 400)):
        got, said, _ = await ask(server, "POST", "/v2/repository/index", body)
        assert got == status
        assert status != 200 or [entry["name"] for entry in said] == ["loop", "scale"]


# --- places -------------------------------------------------------------------------------------


async def test_sockets_are_the_groups_and_are_taken_over_only_from_the_dead(tmp_path: Path) -> None:
    paths = [tmp_path / "grpc.sock", tmp_path / "http.sock"]
    for path in paths:  # what a killed server leaves behind
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    fronts = OtherFronts(grpc_unix=str(paths[0]), http_unix=str(paths[1]))
    async with ProcessModelServer("127.0.0.1:0", fronts=fronts) as started:
        assert started.http_address == ""
        for path in paths:
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
        connection = UnixConnection(str(paths[1]))
        await asyncio.to_thread(connection.request, "GET", "/v2", headers={"Host": "anything"})
        assert connection.getresponse().status == 200
        connection.close()
        for second in (OtherFronts(grpc_unix=str(paths[0])), OtherFronts(http_unix=str(paths[1]))):
            with pytest.raises(DeviceError, match="is taken: another server answers there"):
                await ProcessModelServer("127.0.0.1:0", fronts=second).start()
    assert not any(path.exists() for path in paths)


async def test_places_that_cannot_be_had_fail_the_start(
    server: ProcessModelServer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    taken = server.http_address.rpartition(":")[2]
    for fronts, says in (
        (OtherFronts(http=server.http_address), rf"port {taken} is taken .* \[serving\] http"),
        (OtherFronts(http_unix=str(tmp_path / "file")), "is there and no socket"),
        (OtherFronts(http_unix=str(tmp_path / "none/a.sock")), "Its folder must exist"),
        (OtherFronts(grpc_unix=str(tmp_path / "none/a.sock")), "Its folder must exist"),
    ):
        with pytest.raises(DeviceError, match=says):
            await ProcessModelServer("127.0.0.1:0", fronts=fronts).start()
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    with pytest.raises(ConfigError, match="not a loopback address"):
        ProcessModelServer("127.0.0.1:0", fronts=OtherFronts(http="0.0.0.0:0"))


async def test_after_a_crash_rest_is_back_on_its_port(tmp_path: Path) -> None:
    limits = ModelServerLimits(restart_first_s=0.01)
    fronts = OtherFronts("127.0.0.1:0", http_unix=str(tmp_path / "http.sock"))
    async with ProcessModelServer("127.0.0.1:0", limits, fronts=fronts) as started:
        address, pid = started.http_address, started.state.pid
        assert pid is not None
        os.kill(pid, 9)
        async with asyncio.timeout(LIMIT_S):
            await started.wait_change(1)
        await started.drain()  # waits for the new process
        assert started.http_address == address
        assert (await ask(started, "GET", "/v2/health/live"))[0] == 200
        assert (tmp_path / "http.sock").exists()
