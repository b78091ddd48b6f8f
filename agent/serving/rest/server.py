"""The HTTP front end's thread: an event loop that serves sockets which are bound already.

Rules kept here:

- Sockets are bound before the thread starts, so that a taken port fails the start.
- ``stop`` lets requests under way end, for a bounded time.
"""

import asyncio
import logging
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

import uvicorn

from agent.serving.rest.app import RestApp
from agent.serving.rest.connection import RestConnection

__all__ = ["RestServer"]

MAX_CONNECTIONS: Final = 1024
KEEP_ALIVE_S: Final = 75
_log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """uvicorn's, saying when it listens. It installs no signal handlers: not the main thread."""

    def __init__(self, config: uvicorn.Config, listening: "Future[None]") -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening.set_result(None)


class RestServer:
    """Serves ``app`` on ``sockets`` on a thread of its own."""

    def __init__(self, app: RestApp, sockets: Sequence[socket.socket], grace_s: float) -> None:
        self._listening: Future[None] = Future()
        self._sockets = list(sockets)
        self._server = _Server(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=RestConnection,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(grace_s)),
            ),
            self._listening,
        )
        self._thread = threading.Thread(target=self._run, name="rest", daemon=True)

    def start(self, timeout_s: float = 10.0) -> None:
        """Return once it answers.

        Raises:
            RuntimeError: the loop could not be started.
        """
        self._thread.start()
        try:
            self._listening.result(timeout_s)
        except Exception as error:
            raise RuntimeError(f"the HTTP front end cannot be started: {error}") from error

    def stop(self, timeout_s: float) -> None:
        """Take no more requests and let those under way end. Harmless when it has ended."""
        self._server.should_exit = True
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._server.run(self._sockets)
        except BaseException as error:
            if not self._listening.done():
                self._listening.set_exception(error)
            else:
                _log.exception("the HTTP front end ended")
            if not isinstance(error, Exception | SystemExit | asyncio.CancelledError):
                raise
