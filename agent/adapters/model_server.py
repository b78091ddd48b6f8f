"""The model server as the updater's port: starts the child process, watches it, restarts it, stops
it.

Rules kept here:

- No numpy, onnxruntime, grpc or protocol messages: all of that is the child's.
- The child leads its own session, so Ctrl-C in a terminal reaches the supervisor alone, which then
  decides.
- A child that dies, hangs or does not answer in time is replaced, with a growing, bounded delay;
  each start raises ``generation``. The port it got first is kept, so that applications find the
  server again.
- Which bundles ran in a child when it died is read from a file in memory that it wrote to
  (``agent.runtime.run_marks``): ``ServerState.suspects``.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from agent.adapters.durable import make_folder
from agent.errors import AgentError, DeviceError
from agent.health.model_memory import model_memory
from agent.ports import ModelMemory, ServedWindow, ServerState, Sharing
from agent.runtime import run_marks
from agent.runtime.child import child_command, child_environment, describe_exit
from agent.runtime.providers import DEFAULT_PROVIDERS
from agent.serving.control import Message, Op, windows_from
from agent.serving.control_client import ControlClient
from agent.serving.listen import remove_sockets
from agent.trust.loopback import require_loopback

__all__ = ["ModelServerLimits", "OtherFronts", "ProcessModelServer"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelServerLimits:
    """Bounds of the model server's process."""

    start_s: float = 60.0
    """From the start of the process to its being ready; also how long a request waits for a
    restart."""
    load_s: float = 180.0
    """Loading and warming up one bundle; a server that takes longer hangs and is replaced."""
    control_s: float = 30.0
    """Any other request."""
    ping_every_s: float = 15.0
    """Between two looks at whether the server still answers."""
    restart_first_s: float = 0.1
    """Delay before the first restart; doubles with each further death."""
    restart_most_s: float = 30.0
    """The longest delay before a restart."""
    healthy_after_s: float = 60.0
    """A process that lived this long starts the delays afresh."""
    grace_s: float = 5.0
    """For requests under way when the server is stopped."""
    rest_s: float = 20.0
    """Without work before the process gives memory back; 0: never."""
    kill_wait_s: float = 10.0
    """For a process to be gone: on top of ``grace_s`` after a request to stop, and again after a
    kill."""


@dataclass(frozen=True, slots=True)
class _Child:
    process: asyncio.subprocess.Process
    control: ControlClient
    address: str


@dataclass(frozen=True, slots=True)
class OtherFronts:
    """Where the server answers besides gRPC on its address; what is empty is off."""

    http: str = ""
    """REST on ``HOST:PORT``, on the loopback; port 0 takes a free one, see ``http_address``."""
    grpc_unix: str = ""
    """Path of a unix socket."""
    http_unix: str = ""
    grpc_front: str = "http2"
    """What answers gRPC: our own HTTP/2, or "grpcio"."""


class ProcessModelServer:
    """Implements ``agent.ports.ModelServer``. Use ``start`` and ``stop``, or as an asynchronous
    context manager.

    ``listen`` is ``HOST:PORT`` on the loopback; port 0 takes a free one, see ``address``.
    """

    def __init__(
        self,
        listen: str,
        limits: ModelServerLimits | None = None,
        *,
        providers: Sequence[str] = DEFAULT_PROVIDERS,
        form_of: Callable[[str], str] | None = None,
        fronts: OtherFronts | None = None,
        reads_only: Sequence[Path] = (),
    ) -> None:
        """``form_of``: the folder where the saved form of a bundle may be, by manifest digest.
        ``reads_only``: the process is confined, and reads bundles and saved forms from these folders alone."""
        self._providers = tuple(providers)
        self._form_of = form_of
        host, _, port = listen.rpartition(":")
        require_loopback(host, "[serving] listen")
        self._host, self._port = host, port
        self._fronts = fronts or OtherFronts()
        self._reads_only = tuple(reads_only)
        self.confined: Mapping[str, float] = {}
        """What the running process was kept from (``agent.runtime.confine.Confined.measures``)."""
        self._http = self._fronts.http
        if self._http:
            require_loopback(self._http.rpartition(":")[0], "[serving] http")
        self._limits = limits or ModelServerLimits()
        self._state = ServerState(running=False, generation=0, pid=None)
        self._child: _Child | None = None
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._marks: int | None = None
        self._memory: ModelMemory | None = None
        self._empty_bytes: int | None = None
        """Held by the running process before it had a model."""

    @property
    def state(self) -> ServerState:
        return self._state

    @property
    def memory(self) -> ModelMemory | None:
        """As of the last ``drain`` of the process that runs."""
        return self._memory

    @property
    def address(self) -> str:
        """Where the server answers, ``HOST:PORT``; with port 0 the real one is known after
        ``start``."""
        return f"{self._host}:{self._port}"

    @property
    def http_address(self) -> str:
        """Where the server answers REST, ``HOST:PORT`` as in ``address``; "" when that is off."""
        return self._http

    async def start(self) -> None:
        """Start the process and wait until it answers.

        Raises:
            DeviceError: it cannot be started, for example because the port is taken.
        """
        if self._task is not None:
            return
        child = await self._spawn()
        self._task = asyncio.create_task(self._keep_running(child), name="model server")

    async def stop(self) -> None:
        """Let requests under way end (bounded), then end the process. Harmless when it does not
        run."""
        self._stopping.set()
        if self._task is not None:
            await self._task
            self._task = None
        if self._marks is not None:
            os.close(self._marks)
            self._marks = None

    async def __aenter__(self) -> "ProcessModelServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def wait_change(self, generation: int) -> ServerState:
        """Return once the process has died or was started anew since ``generation``."""
        while self._state.running and self._state.generation == generation:
            await self._changed.wait()
        return self._state

    # --- requests ---------------------------------------------------------------------------------

    async def load(self, slot_path: str, manifest_sha256: str) -> None:
        """Load the bundle in ``slot_path`` beside what runs, warmed up, not yet answering.

        Raises:
            BundleError: the model cannot be loaded. DeviceError: the server died or timed out.
        """
        form = {} if self._form_of is None else {"form": self._form_of(manifest_sha256)}
        await self._ask(
            self._limits.load_s, Op.LOAD, path=slot_path, manifest_sha256=manifest_sha256, **form
        )

    async def activate(self, model: str, manifest_sha256: str) -> None:
        """Swap: from now on requests for ``model`` go to this loaded version. The old one stays
        loaded.

        Raises:
            DeviceError: it is not loaded, or the server died.
        """
        await self._ask(
            self._limits.control_s, Op.ACTIVATE, model=model, manifest_sha256=manifest_sha256
        )

    async def share(self, model: str, sharing: Sharing | None) -> None:
        """Let a loaded version take part beside the active one, in place of the one that did; None:
        nothing does.

        Raises:
            DeviceError: it is not loaded, or the server died or timed out.
        """
        await self._ask(
            self._limits.control_s,
            Op.SHARE,
            model=model,
            sharing=None if sharing is None else asdict(sharing),
        )

    async def unload(self, model: str, manifest_sha256: str, hold_s: float = 0.0) -> None:
        """Let a version go once its last lease ends. Unknown versions are no error.

        ``hold_s``: this is to make room for the next version. Returns once the memory is free;
        requests for the model wait for that next version, for so long at most.

        Raises:
            DeviceError: the server died or timed out, or requests did not end in ``hold_s``.
        """
        if hold_s > 0:
            await self._ask(
                self._limits.control_s + hold_s,
                Op.UNLOAD,
                model=model,
                manifest_sha256=manifest_sha256,
                hold_s=hold_s,
            )
            return
        await self._ask(
            self._limits.control_s, Op.UNLOAD, model=model, manifest_sha256=manifest_sha256
        )

    async def drain(self) -> Sequence[ServedWindow]:
        """Counters since the last drain, one a version that is loaded or went away since, then
        reset.

        Raises:
            DeviceError: the server died or timed out.
        """
        answer = await self._ask(self._limits.control_s, Op.DRAIN)
        pid = self._state.pid
        held_bytes = None if pid is None else _rss_bytes(pid)
        self._memory = model_memory(answer.get("budgets"), self._empty_bytes, held_bytes)
        return windows_from(answer)

    async def _ask(
        self, limit_s: float, op: Op, **arguments: str | float | Mapping[str, Any] | None
    ) -> Message:
        child = await self._running_child(op)
        try:
            async with asyncio.timeout(limit_s):
                return await child.control.ask(op, **arguments)
        except TimeoutError:
            _kill(child.process)
            raise DeviceError(
                f"the model server did not answer {op} within {limit_s:g} s and was killed; it will be restarted"
            ) from None

    async def _running_child(self, op: Op) -> _Child:
        """The child, after a restart when one is under way."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.start_s):
                while self._child is None and self._task is not None and not self._task.done():
                    await self._changed.wait()
        if self._child is None:
            last = f"; last exit: {self._state.last_exit}" if self._state.last_exit else ""
            raise DeviceError(f"the model server is not running, so it cannot {op}{last}")
        return self._child

    # --- the process ------------------------------------------------------------------------------

    async def _keep_running(self, child: _Child) -> None:
        """Own the process: one at a time, replaced when it dies, until ``stop``."""
        loop = asyncio.get_running_loop()
        delay_s = self._limits.restart_first_s
        current: _Child | None = child
        while True:
            if current is not None:
                began_s = loop.time()
                last_exit = await self._watch(current)
                self._became_down(last_exit)
                if loop.time() - began_s >= self._limits.healthy_after_s:
                    delay_s = self._limits.restart_first_s
            if self._stopping.is_set():
                return
            _log.warning(
                "model server down (%s); restart in %.1f s", self._state.last_exit, delay_s
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return
            delay_s = min(delay_s * 2, self._limits.restart_most_s)
            try:
                current = await self._spawn()
            except DeviceError as error:
                current = None
                self._became_down(str(error))

    def _became_down(self, last_exit: str) -> None:
        self._child = self._memory = None
        suspects = self._state.suspects
        if self._state.running and self._marks is not None:  # else it is the death before, again
            suspects = run_marks.read_suspects(self._marks)
        self._set_state(ServerState(False, self._state.generation, None, last_exit, suspects))

    def _set_state(self, state: ServerState) -> None:
        self._state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _fresh_marks(self) -> int:
        """The file of marks, emptied for the next child; made at the first use. Raises DeviceError."""
        try:
            if self._marks is None:
                self._marks = run_marks.make_file()
            run_marks.clear_file(self._marks)
        except OSError as error:
            raise DeviceError(f"no memory for the model server's marks: {error}") from error
        return self._marks

    async def _spawn(self) -> _Child:
        """Start a process and wait until it answers. Raises DeviceError, leaving nothing behind."""
        marks = self._fresh_marks()
        for folder in self._reads_only:  # what is not there cannot be granted
            make_folder(folder)
        ours, theirs = socket.socketpair()
        with theirs:
            command = child_command(
                "agent.serving",
                "--control-fd", str(theirs.fileno()),
                "--marks-fd", str(marks),
                "--providers", ",".join(self._providers),
                "--listen", self.address,
                "--grpc-front", self._fronts.grpc_front,
                "--http", self._http,
                "--grpc-unix", self._fronts.grpc_unix,
                "--http-unix", self._fronts.http_unix,
                "--grace-s", str(self._limits.grace_s),
                "--rest-s", str(self._limits.rest_s),
                *(f"--confine-read={folder}" for folder in self._reads_only),
            )  # fmt: skip
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), marks),
                    env=child_environment(),
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise DeviceError(f"the model server cannot be started: {error}") from error
        control = await ControlClient.open(ours)
        try:
            async with asyncio.timeout(self._limits.start_s):
                ready = await control.ready()
        except (DeviceError, TimeoutError) as error:
            await self._end(process, control)
            why = str(error) or f"not ready within {self._limits.start_s:g} s"
            raise DeviceError(
                f"the model server cannot be started on {self.address}: {why}"
            ) from error
        except asyncio.CancelledError:
            await self._end(process, control)
            raise
        self._port = str(ready["port"])
        if self._http:
            self._http = f"{self._http.rpartition(':')[0]}:{ready['http_port']}"
        self.confined = ready.get("confined", {})
        self._child = _Child(process, control, self.address)
        self._empty_bytes = _rss_bytes(process.pid)
        self._set_state(
            replace(
                self._state,
                running=True,
                generation=self._state.generation + 1,
                pid=process.pid,
            )
        )
        return self._child

    async def _watch(self, child: _Child) -> str:
        """Wait for the end of the process, ended by itself, by ``stop`` or for not answering. Says
        how it ended."""
        died = asyncio.create_task(child.process.wait())
        stop = asyncio.create_task(self._stopping.wait())
        deaf = asyncio.create_task(self._ping(child))
        try:
            await asyncio.wait((died, stop, deaf), return_when=asyncio.FIRST_COMPLETED)
            unresponsive = deaf.done() and not died.done()
            if stop.done() and not died.done():
                await self._shut_down(child, died)
        finally:
            for task in (stop, deaf, died):
                task.cancel()
            await asyncio.gather(stop, deaf, died, return_exceptions=True)
            await self._end(child.process, child.control)
        code = child.process.returncode
        how = "did not go away" if code is None else describe_exit(code)
        if code == run_marks.EXIT_STUCK:
            how = "a run of a model did not end when told to"
        return f"stopped answering, {how}" if unresponsive else how

    async def _ping(self, child: _Child) -> None:
        """Return when the server has stopped answering."""
        while True:
            await asyncio.sleep(self._limits.ping_every_s)
            try:
                async with asyncio.timeout(self._limits.control_s):
                    await child.control.ask(Op.PING)
            except (TimeoutError, AgentError):  # deaf or dead: both end in a new process
                return

    async def _shut_down(self, child: _Child, died: "asyncio.Task[int]") -> None:
        """Ask the server to let requests end and go; ``_end`` kills what does not."""
        limit_s = self._limits.grace_s + self._limits.kill_wait_s
        with contextlib.suppress(
            TimeoutError, AgentError
        ):  # a server that cannot be asked is killed
            async with asyncio.timeout(limit_s):
                await child.control.ask(Op.SHUTDOWN)
            async with asyncio.timeout(limit_s):
                await asyncio.shield(died)
            # A confined server may not remove anything.
            remove_sockets(
                [path for path in (self._fronts.grpc_unix, self._fronts.http_unix) if path]
            )

    async def _end(self, process: asyncio.subprocess.Process, control: ControlClient) -> None:
        """Make sure that process and channel are gone."""
        await control.close()
        _kill(process)
        with contextlib.suppress(TimeoutError):  # stuck in the kernel: killed, it cannot run on
            async with asyncio.timeout(self._limits.kill_wait_s):
                await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):  # ended in this moment
            os.killpg(process.pid, signal.SIGKILL)


def _rss_bytes(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it has just ended
        return None
