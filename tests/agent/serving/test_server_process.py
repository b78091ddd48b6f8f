"""The server's process: restarts, stops, hangs, dies with its parent, and never takes the supervisor with it."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from agent.adapters.model_server import ModelServerLimits, ProcessModelServer
from agent.bundle import Stage, TensorSpec
from agent.errors import BundleError, ConfigError, DeviceError
from agent.ports import ModelServer, ServerState
from agent.runtime.child import child_command, child_environment
from agent.serving import control
from tests.support.onnx_models import (
    BundleMaker,
    MadeBundle,
    endless_model,
    loop_model,
    scale_bundle,
)

ROOT = Path(__file__).resolve().parents[3]
QUICK = ModelServerLimits(restart_first_s=0.01, restart_most_s=0.05, grace_s=1.0)
LIMIT_S = 90.0


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ProcessModelServer]:
    async with ProcessModelServer("127.0.0.1:0", QUICK) as started:
        yield started


@pytest.fixture
def bundle(tmp_path: Path) -> MadeBundle:
    return scale_bundle(tmp_path / "bundle")


async def running_again(server: ProcessModelServer, generation: int) -> ServerState:
    """The state once a process after ``generation`` runs."""
    async with asyncio.timeout(LIMIT_S):
        while not (server.state.running and server.state.generation > generation):
            await asyncio.sleep(0.005)
    return server.state


def ask(address: str, timeout_s: float | None = None) -> float:
    sent = triton.InferInput("x", [1, 4], "FP32")
    sent.set_data_from_numpy(np.ones((1, 4), np.float32))
    with triton.InferenceServerClient(address) as client:
        answer = client.infer("scale", [sent], client_timeout=timeout_s)
    return float(answer.as_numpy("y")[0, 0])


def wait_gone(pid: int) -> None:
    """Wait until a process that is no child of ours has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([handle], [], [], LIMIT_S)
        assert ended, f"process {pid} is still there"
    finally:
        os.close(handle)


async def test_it_is_the_updaters_port(server: ProcessModelServer) -> None:
    port: ModelServer = server
    assert port.state == ServerState(True, 1, server.state.pid)


async def test_a_crash_is_noticed_and_the_server_comes_back_on_its_port(
    server: ProcessModelServer, bundle: MadeBundle
) -> None:
    address, pid = server.address, server.state.pid
    assert pid is not None
    change = asyncio.create_task(server.wait_change(1))
    os.kill(pid, signal.SIGSEGV)
    async with asyncio.timeout(LIMIT_S):
        state = await change
    assert (state.running, state.generation, state.last_exit) == (False, 1, "killed by SIGSEGV")
    state = await running_again(server, 1)
    assert (state.generation, server.address) == (2, address)
    await server.load(str(bundle.path), bundle.sha256)
    await server.activate("scale", bundle.sha256)
    assert await asyncio.to_thread(ask, address) == 2.0
    assert (await server.wait_change(1)).generation == 2


async def test_a_request_during_a_restart_waits_for_it(
    server: ProcessModelServer, bundle: MadeBundle
) -> None:
    assert server.state.pid is not None
    os.kill(server.state.pid, signal.SIGKILL)
    await server.wait_change(1)
    await server.load(str(bundle.path), bundle.sha256)
    assert server.state.generation == 2


async def test_a_request_under_way_when_it_dies_is_the_devices_error(
    server: ProcessModelServer, tmp_path: Path
) -> None:
    made = BundleMaker(models={"model.onnx": endless_model()}).write(tmp_path / "endless")
    load = asyncio.create_task(server.load(str(made.path), made.sha256))
    await server.drain()  # answered while the load goes on, and sent after it
    assert server.state.pid is not None
    os.kill(server.state.pid, signal.SIGKILL)
    with pytest.raises(DeviceError, match="went away"):
        async with asyncio.timeout(LIMIT_S):
            await load


async def test_a_load_that_hangs_is_ended_with_its_process(
    tmp_path: Path, bundle: MadeBundle
) -> None:
    limits = ModelServerLimits(restart_first_s=0.01, load_s=1.0)
    made = BundleMaker(models={"model.onnx": endless_model()}).write(tmp_path / "endless")
    async with ProcessModelServer("127.0.0.1:0", limits) as server:
        with pytest.raises(DeviceError, match=r"did not answer load within 1 s and was killed"):
            await server.load(str(made.path), made.sha256)
        await running_again(server, 1)
        assert await server.drain() == []


async def test_a_server_that_stopped_answering_is_replaced() -> None:
    limits = ModelServerLimits(restart_first_s=0.01, ping_every_s=0.05, control_s=0.5)
    async with ProcessModelServer("127.0.0.1:0", limits) as server:
        assert server.state.pid is not None
        os.kill(server.state.pid, signal.SIGSTOP)
        state = await running_again(server, 1)
        assert state.last_exit == "stopped answering, killed by SIGKILL"


async def test_requests_under_way_are_answered_before_a_stop(bundle: MadeBundle) -> None:
    server = ProcessModelServer("127.0.0.1:0", QUICK)
    await server.start()
    await server.load(str(bundle.path), bundle.sha256)
    await server.activate("scale", bundle.sha256)
    asked = [asyncio.create_task(asyncio.to_thread(ask, server.address)) for _ in range(4)]
    async with asyncio.timeout(LIMIT_S):
        while not any(task.done() for task in asked):
            await asyncio.sleep(0.001)
    pid = server.state.pid
    await server.stop()
    assert server.state == ServerState(False, 1, None, "exit code 0")
    assert not psutil.pid_exists(pid or 0)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert 2.0 in answers
    assert all(answer == 2.0 or isinstance(answer, InferenceServerException) for answer in answers)
    with pytest.raises(DeviceError, match="not running, so it cannot drain"):
        await server.drain()
    await server.stop()


async def test_a_stop_is_bounded_when_a_request_never_ends(tmp_path: Path) -> None:
    """The model's loop runs as often as its input says."""
    made = BundleMaker(
        models={"model.onnx": loop_model()},
        stages=[Stage("main", "model.onnx", (("rounds", "rounds"),), (("y", "y"),))],
        inputs=[TensorSpec("rounds", "INT64", ())],
        outputs=[TensorSpec("y", "INT64", ())],
    ).write(tmp_path / "loop")
    server = ProcessModelServer("127.0.0.1:0", QUICK)
    await server.start()
    await server.load(str(made.path), made.sha256)
    await server.activate("scale", made.sha256)
    client = triton.InferenceServerClient(server.address)

    def rounds(count: int) -> list[triton.InferInput]:
        sent = triton.InferInput("rounds", [], "INT64")
        sent.set_data_from_numpy(np.array(count, np.int64))
        return [sent]

    # A caller's deadline ends the run, not only the wait: the thread is free again.
    # One that ends on its way to the server is asked again, with more patience.
    patience_s = 0.3
    async with asyncio.timeout(LIMIT_S):
        while not any(window.failures for window in await server.drain()):
            with pytest.raises(InferenceServerException):
                client.infer("scale", rounds(2**62), client_timeout=patience_s)
            assert client.infer("scale", rounds(5)).as_numpy("y") == 5
            patience_s *= 1.5

    hanging = asyncio.create_task(asyncio.to_thread(client.infer, "scale", rounds(2**62)))
    async with asyncio.timeout(LIMIT_S):
        process = psutil.Process(server.state.pid)
        spent_s = process.cpu_times().user
        while process.cpu_times().user < spent_s + 0.2:
            await asyncio.sleep(0.02)
    async with asyncio.timeout(LIMIT_S):
        await server.stop()
    with pytest.raises(InferenceServerException):
        await hanging


async def test_loading_leaves_no_thread_at_low_priority(
    server: ProcessModelServer, tmp_path: Path
) -> None:
    """onnxruntime's own threads inherit the loader's priority, and could never get it back."""
    for threads in (1, 2):
        made = scale_bundle(tmp_path / str(threads), version=str(threads), intra_op_threads=threads)
        await server.load(str(made.path), made.sha256)

    def nice() -> set[str]:
        found = set()
        for task in Path(f"/proc/{server.state.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
                found.add((task / "stat").read_text().rpartition(")")[2].split()[16])
        return found

    async with asyncio.timeout(LIMIT_S):
        while nice() != {
            str(os.nice(0))
        }:  # the loader's own thread has answered and may not have ended
            await asyncio.sleep(0.01)


async def test_a_bad_bundle_is_the_bundles_error_and_the_server_stays(
    server: ProcessModelServer, tmp_path: Path, bundle: MadeBundle
) -> None:
    bad = BundleMaker(models={"model.onnx": b"garbage"}).write(tmp_path / "bad")
    with pytest.raises(BundleError, match=r"model\.onnx cannot be loaded"):
        await server.load(str(bad.path), bad.sha256)
    with pytest.raises(BundleError, match="000000000000 was asked for"):
        await server.load(str(bundle.path), "0" * 64)
    with pytest.raises(BundleError):
        await server.load(str(tmp_path / "nowhere"), "0" * 64)
    with pytest.raises(DeviceError, match="is not loaded, so it cannot be activated"):
        await server.activate("scale", bundle.sha256)
    await server.unload("scale", bundle.sha256)
    assert server.state.generation == 1


async def test_a_taken_port_is_said_and_nothing_is_left_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = ProcessModelServer(address)
        before = psutil.Process().children()  # other tests' fixtures may have some
        with pytest.raises(DeviceError, match=rf"cannot be started on {address}.*taken"):
            await server.start()
    assert psutil.Process().children() == before
    await server.stop()


async def test_two_servers_never_share_a_port(server: ProcessModelServer) -> None:
    second = ProcessModelServer(server.address)
    with pytest.raises(DeviceError, match="taken"):
        await second.start()


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "example.com:80", "192.0.2.1:80"])
def test_only_the_loopback(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"\[serving\] listen"):
        ProcessModelServer(listen)


async def test_the_terminals_interrupt_does_not_reach_it(server: ProcessModelServer) -> None:
    pid = server.state.pid
    assert pid is not None
    assert os.getsid(pid) == pid != os.getsid(0)
    os.kill(pid, signal.SIGINT)
    assert await server.drain() == []
    assert server.state.generation == 1


async def test_sigterm_is_a_clean_end(server: ProcessModelServer) -> None:
    assert server.state.pid is not None
    os.kill(server.state.pid, signal.SIGTERM)
    async with asyncio.timeout(LIMIT_S):
        assert (await server.wait_change(1)).last_exit == "exit code 0"


SUPERVISOR = """
import asyncio, sys
from agent.adapters.model_server import ProcessModelServer
async def main():
    async with ProcessModelServer("127.0.0.1:0") as server:
        print(server.state.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("stuck", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_dies_with_its_supervisor(number: signal.Signals, stuck: bool) -> None:
    """Also when it is stuck and cannot notice by itself: then the kernel does it."""
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None
    pid = int(supervisor.stdout.readline())
    if stuck:
        os.kill(pid, signal.SIGSTOP)
    supervisor.send_signal(number)
    supervisor.wait(LIMIT_S)
    supervisor.stdout.close()
    wait_gone(pid)


def test_it_ends_when_the_control_channel_does() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = child_command(
            "agent.serving", "--control-fd", str(theirs.fileno()), "--listen", "127.0.0.1:0"
        )
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=child_environment())
        theirs.close()
        assert control.decode(ours.makefile("rb").readline())["event"] == control.Event.READY
        ours.shutdown(socket.SHUT_RDWR)
        assert process.wait(LIMIT_S) == 0


def test_the_supervisors_side_stays_small() -> None:
    heavy = ("numpy", "onnxruntime", "grpc", "protos.inference_pb2", "onnx")
    script = (
        "import sys, agent.adapters.trial, agent.adapters.model_server, agent.runtime, agent.serving\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("line", [b"nonsense\n", b"[]\n", b"\xff\n"])
def test_a_broken_control_channel_is_the_devices_error(line: bytes) -> None:
    with pytest.raises(DeviceError, match="unreadable"):
        control.decode(line)
