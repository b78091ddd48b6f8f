"""The front end's life: its places, its thread, its event loop, its end.

Rules kept here:

- Sockets are bound before the thread starts, so that a taken port fails the start.
- ``stop`` says GOAWAY to everybody and lets calls under way end, for a bounded time.
"""

import asyncio
import logging
import socket
import threading
import time
from concurrent.futures import Future
from functools import partial

import uvloop

from agent.serving.http2.desk import Desk
from agent.serving.http2.grpc_messages import read_head
from agent.serving.http2.limits import CallLimits, FrontLimits, Http2Limits
from agent.serving.http2.protocol import Http2Protocol, Surroundings
from agent.serving.listen import BACKLOG, bind_tcp, bind_unix
from agent.serving.service import InferenceService

__all__ = ["Http2Front"]

START_S = 10.0
_log = logging.getLogger(__name__)


class Http2Front:
    """The server, bound to its places and not started once it is made."""

    def __init__(
        self,
        service: InferenceService,
        listen: str,
        unix_path: str,
        calls: CallLimits,
        limits: FrontLimits | None = None,
        http2: Http2Limits | None = None,
    ) -> None:
        """``unix_path``: a unix socket as well; "" for none.

        Raises:
            ConfigError: not on the loopback. RuntimeError: a place cannot be had. ValueError: the port is no number.
        """
        self._service = service
        self._call_limits = calls
        self._limits = limits or FrontLimits()
        self._http2 = http2 or Http2Limits()
        self._sockets = [bind_tcp(listen, "[serving] listen")]
        self.port = int(self._sockets[0].getsockname()[1])
        if unix_path:
            self._sockets.append(bind_unix(unix_path, "[serving] grpc_unix"))
        self._listening: Future[None] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._grace_s = 0.0
        self._thread = threading.Thread(target=self._run, name="grpc", daemon=True)

    def start(self) -> None:
        """Return once it answers.

        Raises:
            RuntimeError: the loop could not be started.
        """
        self._thread.start()
        try:
            self._listening.result(START_S)
        except Exception as error:
            raise RuntimeError(f"the gRPC front end cannot be started: {error}") from error

    def stop(self, grace_s: float) -> None:
        """Take no more calls and let those under way end, for ``grace_s`` at most; ``wait`` waits for that."""
        self._grace_s = grace_s
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)

    def wait(self) -> None:
        """Return once ``stop`` is done."""
        self._thread.join()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            if not self._listening.done():
                self._listening.set_exception(error)
            else:
                _log.exception("the gRPC front end ended")
            if not isinstance(error, Exception):
                raise

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        desk = Desk(self._service, self._call_limits, loop)
        around = Surroundings(
            desk,
            partial(read_head, methods=self._service.methods),
            self._http2,
            self._limits,
            set(),
            time.monotonic(),
            asyncio.Event(),
        )
        around.last_gone.set()
        servers = [await _listen(loop, around, one) for one in self._sockets]
        sweeping = asyncio.create_task(_sweep(around))
        self._listening.set_result(None)
        await self._stop.wait()
        for server in servers:
            server.close()
        await _drain(around, self._grace_s)
        sweeping.cancel()
        desk.close()


async def _listen(
    loop: asyncio.AbstractEventLoop, around: Surroundings, bound: socket.socket
) -> asyncio.AbstractServer:
    def made() -> Http2Protocol:
        return Http2Protocol(around)

    if bound.family == socket.AF_UNIX:
        return await loop.create_unix_server(made, sock=bound, backlog=BACKLOG)
    return await loop.create_server(made, sock=bound, backlog=BACKLOG)


async def _sweep(around: Surroundings) -> None:
    while True:
        await asyncio.sleep(around.limits.look_every_s)
        around.now_s = time.monotonic()
        for connection in list(around.connections):
            connection.sweep()


async def _drain(around: Surroundings, grace_s: float) -> None:
    """Until every connection is gone, at most ``grace_s``."""
    for connection in list(around.connections):
        connection.drain()
    try:
        async with asyncio.timeout(grace_s):
            await around.last_gone.wait()
    except TimeoutError:
        for connection in list(around.connections):
            connection.abort()
