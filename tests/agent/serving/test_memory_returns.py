"""Memory of a model that was let go is the system's again, load after load, and loading keeps no more than it needs."""

from pathlib import Path

import numpy as np
import psutil
from onnx import TensorProto, helper

from agent.adapters.model_server import ProcessModelServer
from agent.bundle import TensorSpec
from tests.support.onnx_models import BundleMaker, MadeBundle, floats, model_bytes, scale_bundle

MB = 1_000_000
LAYERS, SIZE = 4, 1800
WEIGHTS_BYTES = LAYERS * SIZE * SIZE * 4


def large_bundle(folder: Path, version: str) -> MadeBundle:
    """Four layers of 13 MB each."""
    weights = np.random.default_rng(3).standard_normal((SIZE, SIZE)).astype(np.float32) / 42
    names = ["x", *(f"h{i}" for i in range(1, LAYERS)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(LAYERS)]
    constants = [
        helper.make_tensor(
            f"w{i}", TensorProto.FLOAT, weights.shape, (weights + i).tobytes(), raw=True
        )
        for i in range(LAYERS)
    ]
    shape = ("batch", SIZE)
    model = model_bytes(nodes, [floats("x", shape)], [floats("y", shape)], constants)
    return BundleMaker(
        models={"model.onnx": model},
        inputs=[TensorSpec("x", "FP32", (-1, SIZE))],
        outputs=[TensorSpec("y", "FP32", (-1, SIZE))],
        model="large",
        version=version,
    ).write(folder)


async def test_what_was_let_go_is_the_systems_again(tmp_path: Path) -> None:
    assert WEIGHTS_BYTES >= 50 * MB
    small = scale_bundle(tmp_path / "small")
    large = large_bundle(tmp_path / "large", "1")
    async with ProcessModelServer("127.0.0.1:0") as server:
        await server.load(str(small.path), small.sha256)
        await server.activate("scale", small.sha256)
        assert server.state.pid is not None
        process = psutil.Process(server.state.pid)
        before = process.memory_info().rss
        for _ in range(3):
            await server.load(str(large.path), large.sha256)
            await server.activate("large", large.sha256)
            held = process.memory_info().rss - before
            assert WEIGHTS_BYTES * 0.9 < held < WEIGHTS_BYTES * 1.3
            # With a hold the answer comes once the memory is free.
            await server.unload("large", large.sha256, hold_s=10.0)
            assert process.memory_info().rss - before < 4 * MB
