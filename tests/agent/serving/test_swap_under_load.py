"""Swaps beside eight clients that never pause: no failed request, every answer as onnxruntime gives it directly."""

import threading
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton

from agent.adapters.model_server import ProcessModelServer
from agent.adapters.trial import ProcessTrial
from agent.bundle import Stage, TensorSpec
from tests.support.onnx_models import BundleMaker, MadeBundle, scale_bundle

CLIENTS = 8
Ask = Callable[[triton.InferenceServerClient], None]


class Load:
    """Clients, each on its own connection and thread, that ask again and again until told to stop."""

    def __init__(self, address: str, ask: Ask) -> None:
        self._address, self._ask = address, ask
        self._stop = threading.Event()
        self.failures: list[BaseException] = []
        self.answers = [0] * CLIENTS
        self._threads = [threading.Thread(target=self._run, args=(me,)) for me in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, me: int) -> None:
        with triton.InferenceServerClient(self._address) as client:
            while not self._stop.is_set():
                try:
                    self._ask(client)
                    self.answers[me] += 1
                except Exception as error:  # noqa: BLE001 any failure is what this looks for
                    self.failures.append(error)


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


@pytest.mark.timeout(180)
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
            trial = await ProcessTrial().run(str(new.path), new.manifest)
            assert trial.ok, trial.reason
            for _ in range(4):
                await swap(server, old, new)
                old, new = new, old
        assert load.failures == []
        assert all(load.answers)
        assert sum(window.output_violations for window in await server.drain()) == 0
