"""The server's end of the control channel: one thread reads requests, one loads, both answer.

Rules kept here:

- A load never holds up another request: it runs on its own thread, one at a time, at the lowest
  priority, so that it takes nothing from the threads that answer. (A bundle that asks for threads
  of its own is loaded at normal priority: onnxruntime's threads inherit the loader's for good.)
- When the channel ends, the supervisor is gone and so are we.
"""

import logging
import os
import queue
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from agent.bundle.folder import read_bundle
from agent.errors import AgentError, BundleError, DeviceError
from agent.runtime import run_marks
from agent.runtime.registry import Registry
from agent.serving.control import MAX_LINE_BYTES, Fault, Message, Op, decode, encode, share_from

__all__ = ["ControlLoop"]

MAX_WAITING_LOADS: Final = 16
_log = logging.getLogger(__name__)


class ControlLoop:
    """Serves one channel. ``ended`` is called once: at a shutdown request or when the channel
    closes."""

    def __init__(
        self,
        channel: socket.socket,
        registry: Registry,
        ended: Callable[[], None],
        drained: Callable[[], list[dict[str, Any]]],
    ) -> None:
        """``drained`` gives what was counted since it was last asked."""
        self._channel = channel
        self._registry = registry
        self._ended = ended
        self._drained = drained
        self._write = threading.Lock()
        self._loads: queue.Queue[Message] = queue.Queue(MAX_WAITING_LOADS)
        self._loading = False

    def start(self) -> None:
        """Start both threads; they end with the process."""
        threading.Thread(target=self._read, name="control", daemon=True).start()
        threading.Thread(target=self._load_all, name="loader", daemon=True).start()

    @property
    def loading(self) -> bool:
        """Whether a load is under way or waits."""
        return self._loading or not self._loads.empty()

    def send(self, message: Message) -> None:
        """Send a message up. A supervisor that is gone is noticed by the reading thread."""
        with self._write:
            try:
                self._channel.sendall(encode(message))
            except OSError as error:
                _log.debug("control channel: %s", error)

    def _read(self) -> None:
        try:
            with self._channel.makefile("rb") as lines:
                while line := lines.readline(MAX_LINE_BYTES):
                    self._take(decode(line))
        except (AgentError, OSError) as error:
            _log.warning("the control channel broke, stopping: %s", error)
        finally:
            self._ended()

    def _take(self, message: Message) -> None:
        slow = message.get("op") == Op.LOAD or message.get("hold_s")
        if not slow:
            self._answer(message, self._perform)
            return
        try:
            self._loads.put_nowait(message)
        except queue.Full:
            self._answer(message, _refuse_load)

    def _load_all(self) -> None:
        while True:
            message = self._loads.get()
            self._loading = True
            # A thread for each: a priority once given up cannot be had back.
            thread = threading.Thread(
                target=self._answer, args=(message, self._load), name="load", daemon=True
            )
            thread.start()
            thread.join()
            self._loading = False

    def _answer(self, message: Message, perform: Callable[[Message], Message]) -> None:
        """Do what is asked and send the answer, whatever happens: one bad request is not the
        server's end."""
        answer: Message = {"id": message.get("id"), "ok": True}
        try:
            answer.update(perform(message))
        except BundleError as error:
            answer.update(ok=False, fault=Fault.BUNDLE, error=str(error))
        except Exception as error:  # noqa: BLE001 the answer carries it to the supervisor, which decides
            answer.update(ok=False, fault=Fault.DEVICE, error=str(error) or type(error).__name__)
        self.send(answer)

    def _load(self, message: Message) -> Message:
        if message.get("op") == Op.UNLOAD:
            return self._unload_first(message)
        manifest, _ = read_bundle(message["path"])
        if manifest.intra_op_threads <= 1:
            os.setpriority(os.PRIO_PROCESS, 0, 19)  # this thread
        place = run_marks.begin(message["manifest_sha256"])
        try:
            form = message.get("form")
            self._registry.load(
                message["path"], message["manifest_sha256"], Path(form) if form else None
            )
        finally:
            run_marks.end(place)
        return {}

    def _unload_first(self, message: Message) -> Message:
        """Let the active version go and hold its model; answered once its memory is free again."""
        hold_s, sha256 = float(message["hold_s"]), message["manifest_sha256"]
        self._registry.unload(message["model"], sha256, hold_s)
        if not self._registry.wait_closed(sha256, hold_s):
            raise DeviceError(
                f"requests to {message['model']!r} went on for {hold_s:g} s, so its memory is not free"
            )
        return {}

    def _perform(self, message: Message) -> Message:
        match message.get("op"):
            case Op.ACTIVATE:
                self._registry.activate(message["model"], message["manifest_sha256"])
            case Op.UNLOAD:
                self._registry.unload(message["model"], message["manifest_sha256"])
            case Op.SHARE:
                self._registry.share(message["model"], share_from(message.get("sharing")))
            case Op.DRAIN:
                return {"windows": self._drained(), "budgets": _budgets(self._registry)}
            case Op.SHUTDOWN:
                self._ended()
            case Op.PING:
                pass
            case other:
                raise DeviceError(f"the model server does not know the request {other!r}")
        return {}


def _budgets(registry: Registry) -> list[Message]:
    """The memory that each loaded bundle states, 0 where it states nothing."""
    manifests = [it.manifest for name in registry.names() for it in registry.versions(name)]
    return [{"bundle": it.path, "bytes": it.requirements.memory_bytes} for it in manifests]


def _refuse_load(_message: Message) -> Message:
    raise DeviceError(f"{MAX_WAITING_LOADS} loads are waiting already; try again later")
