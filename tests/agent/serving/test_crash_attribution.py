"""Whom a dead server process is blamed on: what it was loading, what it was running, or nobody."""

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from agent.adapters.model_server import ModelServerLimits, ProcessModelServer
from agent.errors import DeviceError
from agent.runtime.run_marks import read_suspects
from tests.support.bad_models import TRIGGER, crashing_model, hanging_when_triggered
from tests.support.onnx_models import BundleMaker, endless_model, scale_bundle

QUICK = ModelServerLimits(restart_first_s=0.01, restart_most_s=0.05, grace_s=0.1)
LIMIT_S = 90.0


async def died(server: ProcessModelServer, generation: int) -> tuple[str, ...]:
    """Suspects of the death of that generation, once the next one runs."""
    async with asyncio.timeout(LIMIT_S):
        while not (server.state.running and server.state.generation > generation):
            await asyncio.sleep(0.005)
    return server.state.suspects


async def marked(server: ProcessModelServer) -> int:
    """The process, once something runs in it."""
    marks, pid = server._marks, server.state.pid
    assert marks is not None
    assert pid is not None
    async with asyncio.timeout(LIMIT_S):
        while not read_suspects(marks):
            await asyncio.sleep(0.005)
    return pid


def hang(address: str) -> None:
    """A request that does not end before the server does."""
    sent = triton.InferInput("x", [1, 4], "FP32")
    sent.set_data_from_numpy(np.full((1, 4), TRIGGER + 1, np.float32))
    with (
        triton.InferenceServerClient(address) as client,
        pytest.raises(InferenceServerException),
    ):
        client.infer("scale", [sent])


async def test_a_server_is_blamed_on_what_it_did(tmp_path: Path) -> None:
    """One server for all, because its start is what takes time."""
    good = scale_bundle(tmp_path / "good")
    crashing = BundleMaker(models={"model.onnx": crashing_model()}, version="2").write(
        tmp_path / "crashing"
    )
    waiting = BundleMaker(models={"model.onnx": hanging_when_triggered()}, version="4").write(
        tmp_path / "waiting"
    )
    slow = BundleMaker(models={"model.onnx": endless_model()}, version="3").write(tmp_path / "slow")
    async with ProcessModelServer("127.0.0.1:0", QUICK) as server:
        # A real native crash during a load, beside a model that is loaded and idle.
        await server.load(str(good.path), good.sha256)
        await server.activate("scale", good.sha256)
        with pytest.raises(DeviceError):
            await server.load(str(crashing.path), crashing.sha256)
        assert await died(server, 1) == (crashing.sha256,)
        assert "SIGSEGV" in server.state.last_exit

        # Killed while nothing runs.
        await server.load(str(good.path), good.sha256)
        assert server.state.pid is not None
        os.kill(server.state.pid, signal.SIGKILL)
        assert await died(server, 2) == ()

        # Killed in the middle of a load that warms up for ever.
        loading = asyncio.create_task(server.load(str(slow.path), slow.sha256))
        os.kill(await marked(server), signal.SIGKILL)
        with pytest.raises(DeviceError):
            await loading
        assert await died(server, 3) == (slow.sha256,)

        # A crash on a real request, beside the good version.
        await server.load(str(good.path), good.sha256)
        await server.load(str(waiting.path), waiting.sha256)
        await server.activate("scale", waiting.sha256)
        request = asyncio.create_task(asyncio.to_thread(hang, server.address))
        os.kill(await marked(server), signal.SIGSEGV)
        assert await died(server, 4) == (waiting.sha256,)
        await request
