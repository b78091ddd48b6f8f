"""The model server's look at itself: what counts as work, and that its own thread gives memory back."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

from agent.adapters.model_server import ModelServerLimits, ProcessModelServer
from agent.health.calm import CalmLimits, Work
from agent.runtime.registry import Registry
from agent.serving.at_rest import AtRest, work_of
from agent.serving.watchdog import RunWatchdog
from tests.support.daemon import wait_until
from tests.support.onnx_models import scale_bundle

LIMIT_S = 90.0


def test_runs_loads_and_what_is_loaded_are_work(tmp_path):
    bundle = scale_bundle(tmp_path / "bundle")
    registry = Registry()
    watchdog = RunWatchdog(max_run_s=60, look_every_s=60)
    try:
        assert work_of(registry, watchdog, lambda: False) == Work(0, (), False)
        assert work_of(registry, watchdog, lambda: True).under_way
        registry.load(bundle.path, bundle.sha256)
        registry.activate("scale", bundle.sha256)
        with watchdog.watch(None, 1.0):
            assert work_of(registry, watchdog, lambda: False) == Work(1, (bundle.sha256,), True)
        assert work_of(registry, watchdog, lambda: False) == Work(1, (bundle.sha256,), False)
    finally:
        watchdog.stop()
        registry.close()


def test_it_gives_back_once_it_rested_and_not_before():
    now_s, work, given = [0.0], [Work(0, (), False)], []
    at_rest = AtRest(
        lambda: work[-1],
        CalmLimits(rest_s=20, again_s=300),
        lambda: given.append(now_s[0]),
        lambda: now_s[0],
    )
    for second in range(0, 60, 5):
        now_s[0] = float(second)
        if second < 20:
            work.append(Work(second, (), False))
        at_rest.look()
    assert given == [35.0]


def test_its_thread_looks_by_itself():
    given = threading.Event()
    at_rest = AtRest(lambda: Work(0, (), False), CalmLimits(rest_s=0, look_s=0.001), given.set)
    at_rest.start()
    try:
        assert given.wait(LIMIT_S)
    finally:
        at_rest.stop()


def mapped_kb(pid: int) -> int:
    """Resident pages of files."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next(int(it.split()[1]) for it in status.splitlines() if it.startswith("RssFile:"))


async def test_a_real_server_shrinks_and_answers_as_before(tmp_path):
    bundle = scale_bundle(tmp_path / "bundle")
    limits = ModelServerLimits(rest_s=0.2)
    async with ProcessModelServer("127.0.0.1:0", limits) as server:
        await server.load(str(bundle.path), bundle.sha256)
        await server.activate("scale", bundle.sha256)
        pid = server.state.pid

        def shrunk() -> bool:
            return mapped_kb(pid) < 20_000

        await asyncio.to_thread(wait_until, shrunk, "library code let go", LIMIT_S)
        tensor = triton.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
        client = triton.InferenceServerClient(server.address)
        answers = [
            await asyncio.to_thread(client.infer, "scale", [tensor], client_timeout=LIMIT_S)
            for _ in range(3)
        ]
        client.close()
        assert all((it.as_numpy("y") == 2).all() for it in answers)
        assert server.state.pid == pid, "the same process all along"
