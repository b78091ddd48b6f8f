"""``python -m agent.serving --control-fd N --listen HOST:PORT``: the model server's process.

Rules kept here:

- It ends when its supervisor does: the kernel kills it with its parent, and the end of the control
  channel stops it.
- SIGTERM and a shutdown request drain: no new requests, those under way get ``--grace-s``, then the
  process ends whatever still runs. SIGINT is the supervisor's to handle.
- The port is ours alone or the start fails: a second server must not share it silently.
"""

import argparse
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import grpc

from agent.errors import ConfigError
from agent.runtime.registry import Registry
from agent.runtime.sandbox import die_with_parent
from agent.serving.control import Event, encode
from agent.serving.control_loop import ControlLoop
from agent.serving.service import InferenceService
from agent.serving.watchdog import RunWatchdog
from agent.trust.loopback import require_loopback

__all__ = ["ServingLimits", "main"]

EXIT_FAILED: Final = 1


@dataclass(frozen=True, slots=True)
class ServingLimits:
    """Bounds of the server."""

    workers: int = max(4, 2 * (os.cpu_count() or 1))
    """Threads that answer."""
    max_requests: int = 512
    """Under way or waiting for a thread; more are answered RESOURCE_EXHAUSTED at once."""
    max_message_bytes: int = 64 << 20
    """Of one request or answer."""
    max_run_s: float = 60.0
    """One run of a pipeline."""
    look_every_s: float = 0.25
    """How often runs are compared with their deadlines."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="agent.serving", description="The model server of the agent."
    )
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--grace-s", type=float, default=5.0)
    options = parser.parse_args(arguments)
    die_with_parent(signal.SIGKILL)
    logging.basicConfig(level=logging.WARNING, format="model server: %(levelname)s %(message)s")
    # A pipe and not an Event: a signal handler may not take locks that its own thread could hold.
    asked_to_stop, stop = os.pipe()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _tell(stop))
    channel = socket.socket(fileno=options.control_fd)
    limits = ServingLimits()
    registry = Registry()
    watchdog = RunWatchdog(max_run_s=limits.max_run_s, look_every_s=limits.look_every_s)
    control = ControlLoop(channel, registry, lambda: _tell(stop))
    try:
        server, port = _listen(options.listen, InferenceService(registry, watchdog), limits)
    except (ConfigError, RuntimeError, ValueError) as error:
        channel.sendall(encode({"event": Event.FAILED, "error": str(error)}))
        return EXIT_FAILED
    server.start()
    control.start()
    gc.collect()
    gc.freeze()  # what is there now stays: later collections have less to look through
    control.send({"event": Event.READY, "port": port, "pid": os.getpid()})
    os.read(asked_to_stop, 1)
    _drain(server, options.grace_s)
    return 0


def _tell(stop: int) -> None:
    os.write(stop, b"x")


def _listen(listen: str, service: InferenceService, limits: ServingLimits) -> tuple[Any, int]:
    """A server bound to its port, not started.

    Raises:
        ConfigError: not on the loopback. RuntimeError: the port cannot be had. ValueError: it is no
        number.
    """
    host, _, port = listen.rpartition(":")
    require_loopback(host, "[serving] listen")
    number = int(port)
    server = grpc.server(
        ThreadPoolExecutor(limits.workers, thread_name_prefix="infer"),
        handlers=(service.handler(),),
        options=(
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", limits.max_message_bytes),
            ("grpc.max_send_message_length", limits.max_message_bytes),
        ),
        maximum_concurrent_rpcs=limits.max_requests,
    )
    try:
        bound = server.add_insecure_port(f"{host}:{number}")
    except RuntimeError as error:
        raise RuntimeError(
            f"the port {number} is taken or not allowed; choose another in [serving] listen"
        ) from error
    return server, bound


def _drain(server: Any, grace_s: float) -> None:
    """Let requests under way end, for ``grace_s`` at most."""
    # Should a model hold on to everything, the kernel ends the process: no handler, so nothing can
    # hold that up.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, grace_s + 2.0)
    server.stop(grace_s).wait()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads of requests that did not end in time would be waited for.
    os._exit(code)
