"""``python -m agent.serving --control-fd N --listen HOST:PORT``: the model server's process. ``--http``,
``--grpc-unix`` and ``--http-unix`` say where else it listens.

Rules kept here:

- It ends when its supervisor does: the kernel kills it with its parent, and the end of the control
  channel stops it.
- SIGTERM and a shutdown request drain: no new requests, those under way get ``--grace-s``, then the
  process ends whatever still runs. SIGINT is the supervisor's to handle.
- Ports and sockets are ours alone or the start fails: a second server must not share them silently.
- With ``--confine-read`` it gives up, before its first thread, what it does not need (``agent.runtime.confine``).
"""

import argparse
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from agent.errors import ConfigError
from agent.health.calm import CalmLimits
from agent.runtime import run_marks
from agent.runtime.confine import Confined, ServerPlaces, confine_server
from agent.runtime.engine import ort
from agent.runtime.providers import DEFAULT_PROVIDERS, check_available
from agent.runtime.registry import Registry
from agent.runtime.sandbox import die_with_parent
from agent.runtime.session import EngineOptions
from agent.serving.at_rest import AtRest, work_of
from agent.serving.control import Event, encode
from agent.serving.control_loop import ControlLoop
from agent.serving.listen import bind_tcp, bind_unix, claim_unix, remove_sockets
from agent.serving.protocol import InferenceProtocol
from agent.serving.service import InferenceService
from agent.serving.watchdog import RunWatchdog

if TYPE_CHECKING:
    from agent.serving.rest.server import RestServer

__all__ = ["ServingLimits", "main"]

EXIT_FAILED: Final = 1


@dataclass(frozen=True, slots=True)
class ServingLimits:
    """Bounds of the server."""

    workers: int = max(4, 2 * (os.cpu_count() or 1))
    """Threads that answer gRPC requests where grpcio does; our own front end has a small pool beside its loop."""
    max_requests: int = 512
    """Under way or waiting for a thread; more are answered RESOURCE_EXHAUSTED at once."""
    max_message_bytes: int = 64 << 20
    """Of one request or answer."""
    max_run_s: float = 60.0
    """One run of a pipeline."""
    look_every_s: float = 0.25
    """How often runs are compared with their deadlines."""


class GrpcFront(Protocol):
    """Either gRPC front end, bound to its places."""

    port: int

    def start(self) -> None: ...

    def stop(self, grace_s: float) -> None: ...

    def wait(self) -> None: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop. Returns the exit code."""
    options = _options(arguments)
    die_with_parent(signal.SIGKILL)
    logging.basicConfig(level=logging.WARNING, format="model server: %(levelname)s %(message)s")
    # A pipe and not an Event: a signal handler may not take locks that its own thread could hold.
    asked_to_stop, stop = os.pipe()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _tell(stop))
    if options.marks_fd is not None:
        run_marks.install(options.marks_fd)
    channel = socket.socket(fileno=options.control_fd)
    try:
        confined = _confine(options)
    except RuntimeError as error:
        channel.sendall(encode({"event": Event.FAILED, "error": str(error)}))
        return EXIT_FAILED
    limits = ServingLimits()
    registry = Registry(engine=EngineOptions(providers=tuple(options.providers.split(","))))
    watchdog = RunWatchdog(max_run_s=limits.max_run_s, look_every_s=limits.look_every_s)
    protocol = InferenceProtocol(registry, watchdog)
    control = ControlLoop(channel, registry, lambda: _tell(stop), protocol.drained)
    try:
        check_available(
            options.providers.split(","), ort.get_available_providers(), "[serving] providers"
        )
        # Sockets first: permissions of new files are the whole process's, and threads come after.
        server = _listen(options, InferenceService(protocol), limits)
        rest, http_port = _listen_http(options, protocol)
        server.start()
        if rest is not None:
            rest.start()
    except (ConfigError, RuntimeError, ValueError) as error:
        channel.sendall(encode({"event": Event.FAILED, "error": str(error)}))
        return EXIT_FAILED
    control.start()
    gc.collect()
    gc.freeze()  # what is there now stays: later collections have less to look through
    control.send(
        {
            "event": Event.READY,
            "port": server.port,
            "http_port": http_port,
            "pid": os.getpid(),
            "confined": {} if confined is None else confined.measures(),
        }
    )
    if options.rest_s > 0:
        look = partial(work_of, registry, watchdog, lambda: control.loading)
        AtRest(look, CalmLimits.after(options.rest_s)).start()
    os.read(asked_to_stop, 1)
    _drain(server, rest, options.grace_s)
    remove_sockets([path for path in (options.grpc_unix, options.http_unix) if path])
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="agent.serving", description="The model server of the agent."
    )
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--marks-fd", type=int, help="file for agent.runtime.run_marks")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="gRPC")
    parser.add_argument("--grpc-front", choices=("http2", "grpcio"), default="http2")
    parser.add_argument("--http", default="", metavar="HOST:PORT", help="REST")
    parser.add_argument("--grpc-unix", default="", metavar="PATH", help="gRPC on a unix socket")
    parser.add_argument("--http-unix", default="", metavar="PATH", help="REST on a unix socket")
    parser.add_argument(
        "--providers", default=",".join(DEFAULT_PROVIDERS), metavar="NAME,...", help="in order"
    )
    parser.add_argument(
        "--confine-read", action="append", default=[], metavar="DIR", help="bundles are read from here alone"
    )  # fmt: skip
    parser.add_argument("--grace-s", type=float, default=5.0)
    parser.add_argument(
        "--rest-s", type=float, default=0.0, help="give memory back after; 0: never"
    )
    return parser.parse_args(arguments)


def _confine(options: argparse.Namespace) -> Confined | None:
    """Give up what is not needed, when told what is; sockets that dead servers left behind are removed before.

    Raises:
        RuntimeError: a unix socket's place is taken.
    """
    if not options.confine_read:
        return None
    sockets = {
        name: path
        for name, path in (("grpc_unix", options.grpc_unix), ("http_unix", options.http_unix))
        if path
    }
    for name, path in sockets.items():
        claim_unix(path, f"[serving] {name}")
    places = ServerPlaces(
        tuple(Path(folder) for folder in options.confine_read),
        tuple(Path(path).parent for path in sockets.values()),
    )
    return confine_server(places, options.providers.split(","))


def _tell(stop: int) -> None:
    os.write(stop, b"x")


def _listen(
    options: argparse.Namespace, service: InferenceService, limits: ServingLimits
) -> GrpcFront:
    """The gRPC server that was chosen, bound to its places, not started.

    Raises:
        ConfigError: not on the loopback. RuntimeError: a place cannot be had. ValueError: the port
        is no number.
    """
    # Each only where it is chosen: grpcio alone takes 10 MB.
    if options.grpc_front == "grpcio":
        from agent.serving.grpcio_front import GrpcioFront, GrpcioLimits

        bounds = GrpcioLimits(limits.workers, limits.max_requests, limits.max_message_bytes)
        return GrpcioFront(service, options.listen, options.grpc_unix, bounds)
    from agent.serving.http2.limits import CallLimits
    from agent.serving.http2.server import Http2Front

    calls = CallLimits(max_message_bytes=limits.max_message_bytes, max_requests=limits.max_requests)
    return Http2Front(service, options.listen, options.grpc_unix, calls)


def _listen_http(
    options: argparse.Namespace, protocol: InferenceProtocol
) -> tuple["RestServer | None", int | None]:
    """The HTTP front end, bound to its places, not started, and its TCP port; None where it is
    switched off. Raises like ``_listen``."""
    sockets = []
    port = None
    if options.http:
        sockets.append(bind_tcp(options.http, "[serving] http"))
        port = int(sockets[0].getsockname()[1])
    if options.http_unix:
        sockets.append(bind_unix(options.http_unix, "[serving] http_unix"))
    if not sockets:
        return None, None
    # Only here: without it the process is several megabytes smaller.
    from agent.serving.rest.app import RestApp
    from agent.serving.rest.server import RestServer

    return RestServer(RestApp(protocol), sockets, options.grace_s), port


def _drain(server: GrpcFront, rest: "RestServer | None", grace_s: float) -> None:
    """Let requests under way end, for ``grace_s`` at most."""
    # Should a model hold on to everything, the kernel ends the process: no handler, so nothing can
    # hold that up.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, grace_s + 2.0)
    server.stop(grace_s)
    if rest is not None:
        rest.stop(grace_s)
    server.wait()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads of requests that did not end in time would be waited for.
    os._exit(code)
