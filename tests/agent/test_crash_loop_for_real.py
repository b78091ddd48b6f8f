"""A committed bundle whose real server process dies under real requests is left before the third crash."""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from agent.adapters.clock import SystemClock
from agent.adapters.journal import SqliteJournal
from agent.adapters.model_server import ModelServerLimits, ProcessModelServer
from agent.adapters.piece_store import FilePieceStore
from agent.adapters.slot_store import FolderSlotStore
from agent.adapters.trial import ProcessTrial
from agent.runtime.run_marks import read_suspects
from agent.update import Installed, ModelRecord, Slots, UpdateLimits, Updater, UpdaterPorts
from protos import report_pb2
from tests.support.bad_models import TRIGGER, hanging_when_triggered
from tests.support.onnx_models import BundleMaker, MadeBundle, scale_bundle

LIMIT_S = 90.0


class Nobody:
    """No fleet manager."""

    def get_target(self, path, sha256):
        return None


def infer(address: str, value: float) -> str:
    """The version that answered, or "" when the server died of it."""
    sent = triton.InferInput("x", [1, 4], "FP32")
    sent.set_data_from_numpy(np.full((1, 4), value, np.float32))
    with triton.InferenceServerClient(address) as client:
        try:
            answer = client.infer("scale", [sent])
        except InferenceServerException:
            return ""
        return str(answer.get_response().model_version)


async def answering(server: ProcessModelServer) -> str:
    async with asyncio.timeout(LIMIT_S):
        while not (version := await asyncio.to_thread(infer, server.address, 1.0)):
            await asyncio.sleep(0.02)
    return version


async def crash_under_a_request(server: ProcessModelServer) -> None:
    request = asyncio.create_task(asyncio.to_thread(infer, server.address, TRIGGER + 1))
    async with asyncio.timeout(LIMIT_S):
        while server._marks is None or not read_suspects(server._marks):
            await asyncio.sleep(0.005)
    assert server.state.pid is not None
    os.kill(server.state.pid, signal.SIGSEGV)
    assert await request == ""


def installed(slots: Path, made: MadeBundle, rollout: str) -> Installed:
    shutil.copytree(made.path, slots / made.sha256)
    manifest = made.manifest
    return Installed(made.sha256, manifest.version, manifest.path, rollout)


async def test_the_previous_bundle_answers_after_the_second_crash(tmp_path: Path) -> None:
    slots = tmp_path / "slots"
    slots.mkdir()
    bad = BundleMaker(models={"model.onnx": hanging_when_triggered()}, version="2")
    held = Slots(
        active=installed(slots, bad.write(tmp_path / "bad"), "r2"),
        previous=installed(slots, scale_bundle(tmp_path / "good", version="1"), "r1"),
    )
    journal = SqliteJournal(tmp_path / "journal.db")
    journal.save(ModelRecord("scale", held))
    events: list[report_pb2.DeploymentEvent] = []
    limits = ModelServerLimits(restart_first_s=0.01, grace_s=0.1)
    async with ProcessModelServer("127.0.0.1:0", limits) as server:
        ports = UpdaterPorts(
            journal=journal,
            pieces=FilePieceStore(tmp_path / "pieces"),
            slots=FolderSlotStore(slots),
            source=Nobody(),  # type: ignore[arg-type]
            metadata=Nobody(),  # type: ignore[arg-type]
            trial=ProcessTrial(),
            server=server,
            clock=SystemClock(),
        )
        updater = Updater(ports, UpdateLimits(retry_base_s=0.05), events.append)

        async def watch() -> None:
            known = server.state
            while True:
                known = await server.wait_change(known.generation)
                updater.server_changed(known)
                while not server.state.running:
                    await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as tasks:
            work = [tasks.create_task(updater.run()), tasks.create_task(watch())]
            assert await answering(server) == "2"
            await crash_under_a_request(server)
            assert await answering(server) == "2"
            await crash_under_a_request(server)
            assert await answering(server) == "1"
            async with asyncio.timeout(LIMIT_S):
                while updater.deployments():
                    await asyncio.sleep(0.01)
            for task in work:
                task.cancel()
    assert [event.outcome for event in events] == [0, report_pb2.OUTCOME_REVERTED]
    assert events[-1].reason_code == "active_crashes"
    assert "killed by SIGSEGV" in events[-1].reason
    record = journal.load().models["scale"]
    assert record.slots == Slots(held.previous)

    assert record.crashes == ()
    journal.close()
