"""Swaps beside eight clients that never pause: no failed request, every answer as onnxruntime gives it directly."""

import asyncio
import threading
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http

from agent.adapters.model_server import OtherFronts, ProcessModelServer
from agent.adapters.trial import ProcessTrial
from agent.bundle import Stage, TensorSpec
from tests.support.onnx_models import BundleMaker, MadeBundle, scale_bundle

CLIENTS = 8
LIMIT_S = 90.0
Ask = Callable[[Any], None]


class Load:
    """Clients, each on its own connection and thread, that ask again and again until told to stop. With
    ``http`` every other one asks over REST."""

    def __init__(self, address: str, ask: Ask, http: str = "", ask_http: Ask | None = None) -> None:
        self._address, self._ask = address, ask
        self._http, self._ask_http = http, ask_http
        self._stop = threading.Event()
        self.failures: list[BaseException] = []
        self.answers = [0] * CLIENTS
        self._answered = [threading.Event() for _ in range(CLIENTS)]
        self._threads = [threading.Thread(target=self._run, args=(me,)) for me in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    async def everyone_answered(self) -> None:
        """Until each client has had an answer: a thread may start late."""
        for answered in self._answered:
            assert await asyncio.to_thread(answered.wait, LIMIT_S), self.failures

    def _run(self, me: int) -> None:
        made = triton.InferenceServerClient(self._address)
        ask = self._ask
        if self._ask_http is not None and me % 2:
            made, ask = triton_http.InferenceServerClient(self._http), self._ask_http
        with made as client:
            while not self._stop.is_set():
                try:
                    ask(client)
                    self.answers[me] += 1
                    self._answered[me].set()
                except Exception as error:  # noqa: BLE001 any failure is what this looks for
                    self.failures.append(error)


X = np.arange(8, dtype=np.float32).reshape(2, 4)
FACTORS = {"1": 2.0, "2": 3.0}


class Versions:
    """Asks for ``scale`` over both transports, and knows which versions may answer: the active one, and while a swap
    is under way both."""

    def __init__(self, *allowed: str) -> None:
        self.allowed = [set(allowed)]
        """One entry for each change; a request may be answered as any that held while it was under way says."""
        self.seen: set[str] = set()

    def ask_grpc(self, client: Any) -> None:
        sent = triton.InferInput("x", [2, 4], "FP32")
        sent.set_data_from_numpy(X)
        before = len(self.allowed) - 1
        answer = client.infer("scale", [sent])
        self._check(before, answer.get_response().model_version, answer.as_numpy("y"))

    def ask_http(self, client: Any) -> None:
        sent = triton_http.InferInput("x", [2, 4], "FP32")
        sent.set_data_from_numpy(X)
        before = len(self.allowed) - 1
        answer = client.infer("scale", [sent])
        self._check(before, answer.get_response()["model_version"], answer.as_numpy("y"))

    def _check(self, before: int, version: str, y: Any) -> None:
        assert version in set().union(*self.allowed[before:]), f"{version} is not active any more"
        assert np.array_equal(y, X * np.float32(FACTORS[version]))
        self.seen.add(version)


async def test_after_a_swap_is_acknowledged_no_other_version_answers(tmp_path: Path) -> None:
    old = scale_bundle(tmp_path / "a", 2.0, "1")
    new = scale_bundle(tmp_path / "b", 3.0, "2")
    versions = Versions("1")
    async with ProcessModelServer("127.0.0.1:0", fronts=OtherFronts(http="127.0.0.1:0")) as server:
        await server.load(str(old.path), old.sha256)
        await server.activate("scale", old.sha256)
        load = Load(server.address, versions.ask_grpc, server.http_address, versions.ask_http)
        with load:
            await load.everyone_answered()
            for _ in range(12):
                await server.load(str(new.path), new.sha256)
                versions.allowed.append({"1", "2"})
                await server.activate("scale", new.sha256)
                versions.allowed.append({new.manifest.version})
                await server.unload("scale", old.sha256)
                asked = sum(load.answers)
                while sum(load.answers) < asked + CLIENTS and not load.failures:
                    await server.drain()
                old, new = new, old
        assert load.failures == []
        assert all(load.answers)
        assert versions.seen == {"1", "2"}


@pytest.mark.parametrize("front", ["http2", "grpcio"])
async def test_where_memory_allows_one_version_requests_wait_and_none_fails(
    tmp_path: Path, front: str
) -> None:
    old = scale_bundle(tmp_path / "a", 2.0, "1")
    new = scale_bundle(tmp_path / "b", 3.0, "2")
    other = scale_bundle(tmp_path / "c", 5.0, "1", model="other")
    versions = Versions("1", "2")
    fronts = OtherFronts(http="127.0.0.1:0", grpc_front=front)
    async with ProcessModelServer("127.0.0.1:0", fronts=fronts) as server:
        for bundle in (old, other):
            await server.load(str(bundle.path), bundle.sha256)
            await server.activate(bundle.manifest.model, bundle.sha256)
        load = Load(server.address, versions.ask_grpc, server.http_address, versions.ask_http)
        with load:
            await load.everyone_answered()
            for _ in range(6):
                await server.unload("scale", old.sha256, hold_s=60.0)
                await server.load(str(new.path), new.sha256)
                await server.activate("scale", new.sha256)
                asked = sum(load.answers)
                while sum(load.answers) < asked + CLIENTS and not load.failures:
                    await server.drain()
                old, new = new, old
        assert load.failures == []
        assert all(load.answers)
        # Whoever still waits when the time is over is told that it may ask again.
        await server.unload("scale", old.sha256, hold_s=0.2)
        with (
            triton.InferenceServerClient(server.address) as client,
            pytest.raises(triton.InferenceServerException) as caught,
        ):
            versions.ask_grpc(client)
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        assert "is being replaced" in str(caught.value)
        assert server.state.generation == 1


async def swap(server: ProcessModelServer, old: MadeBundle, new: MadeBundle) -> None:
    await server.load(str(new.path), new.sha256)
    await server.activate(new.manifest.model, new.sha256)
    await server.unload(old.manifest.model, old.sha256)


async def test_no_request_fails_and_every_answer_fits_its_version(tmp_path: Path) -> None:
    old = scale_bundle(tmp_path / "a", 2.0, "1")
    new = scale_bundle(tmp_path / "b", 3.0, "2")
    factors = {"1": 2.0, "2": 3.0}
    x = np.arange(8, dtype=np.float32).reshape(2, 4)

    def ask(client: triton.InferenceServerClient) -> None:
        sent = triton.InferInput("x", [2, 4], "FP32")
        sent.set_data_from_numpy(x)
        answer = client.infer("scale", [sent])
        factor = factors[answer.get_response().model_version]
        assert np.array_equal(answer.as_numpy("y"), x * np.float32(factor))

    async with ProcessModelServer("127.0.0.1:0") as server:
        await server.load(str(old.path), old.sha256)
        await server.activate("scale", old.sha256)
        requests = 0
        with Load(server.address, ask) as load:
            await load.everyone_answered()
            for _ in range(25):
                await swap(server, old, new)
                old, new = new, old
                requests += sum(window.requests for window in await server.drain())
        assert load.failures == []
        assert all(load.answers)
        requests += sum(window.requests for window in await server.drain())
        assert requests == sum(load.answers), "a request was counted twice or not at all"
        assert server.state.generation == 1


def magika_bundle(folder: Path, version: str, golden: tuple[Any, Any]) -> MadeBundle:
    """The real file-type model out of its own package."""
    (model,) = (
        p for p in files("magika").joinpath("models").iterdir() if p.name == "standard_v3_3"
    )
    return BundleMaker(
        models={"model.onnx": model.joinpath("model.onnx").read_bytes()},
        stages=[Stage("type", "model.onnx", (("bytes", "bytes"),), (("target_label", "score"),))],
        inputs=[TensorSpec("bytes", "INT32", (-1, 2048), minimum=0, maximum=256)],
        outputs=[TensorSpec("score", "FP32", (-1, 214), minimum=0.0, maximum=1.0001)],
        golden=[({"bytes": golden[0]}, {"score": golden[1]})],
        model="file-type",
        version=version,
    ).write(folder)


def real_bytes(path: Path) -> Any:
    """The start and end of a file as magika's model takes them, padded with 256."""
    content = path.read_bytes()
    sample = np.full(2048, 256, np.int32)
    begin, end = content[:1024], content[-1024:]
    sample[: len(begin)] = np.frombuffer(begin, np.uint8)
    sample[2048 - len(end) :] = np.frombuffer(end, np.uint8)
    return sample.reshape(1, 2048)


async def test_a_real_model_swaps_under_load_with_equal_outputs(tmp_path: Path) -> None:
    session = ort.InferenceSession(
        str(files("magika").joinpath("models/standard_v3_3/model.onnx")),
        providers=["CPUExecutionProvider"],
    )
    inputs = [real_bytes(path) for path in sorted(Path(__file__).parent.glob("*.py"))[:3]]
    expected = [session.run(None, {"bytes": sample})[0] for sample in inputs]
    old, new = (
        magika_bundle(tmp_path / version, version, (inputs[0], expected[0]))
        for version in ("1.0", "1.1")
    )
    turn = iter(range(10**9))

    def ask(client: triton.InferenceServerClient) -> None:
        which = next(turn) % len(inputs)
        sent = triton.InferInput("bytes", [1, 2048], "INT32")
        sent.set_data_from_numpy(inputs[which])
        got = client.infer("file-type", [sent]).as_numpy("score")
        np.testing.assert_allclose(got, expected[which], rtol=1e-5, atol=1e-6)

    async with ProcessModelServer("127.0.0.1:0") as server:
        await server.load(str(old.path), old.sha256)
        await server.activate("file-type", old.sha256)
        with Load(server.address, ask) as load:
            await load.everyone_answered()
            trial = await ProcessTrial().run(str(new.path), new.manifest)
            assert trial.ok, trial.reason
            for _ in range(4):
                await swap(server, old, new)
                old, new = new, old
        assert load.failures == []
        assert all(load.answers)
        assert sum(window.output_violations for window in await server.drain()) == 0
