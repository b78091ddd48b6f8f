"""Where the broker comes from: embedded in a process of its own, or somebody else's.

Rules kept here: nothing listens beyond loopback, and nothing connects beyond it without TLS; an
embedded broker that dies is started again on the same address, with growing pauses, for as long as
the fleet manager runs; it never outlives the fleet manager.
"""

import asyncio
import contextlib
import logging
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from agent.trust.loopback import require_loopback
from fleet.messaging.errors import BrokerError
from protos.topics import MAX_PAYLOAD_BYTES

__all__ = ["Address", "Broker", "BrokerLimits", "EmbeddedBroker", "ExternalBroker"]

_LOG = logging.getLogger(__name__)
_HEADROOM_BYTES: Final = (
    4096  # topic and properties travel with the payload and count for the broker
)

# One listener, MQTT 5 only: every client of ours speaks it. The numbers come from BrokerLimits.
_CONFIG: Final = """\
id = 0

[router]
id = 0
max_connections = {connections}
max_outgoing_packet_count = {outgoing}
max_segment_size = {segment_bytes}
max_segment_count = {segments}

[v5.1]
name = "muster"
listen = "{listen}"
next_connection_delay_ms = 0

[v5.1.connections]
connection_timeout_ms = {connect_timeout_ms}
max_payload_size = {payload_bytes}
max_inflight_count = {inflight}
dynamic_filters = true
"""


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class BrokerLimits:
    """What the embedded broker may use, and how it is watched."""

    connections: int = 4000
    outgoing: int = 200  # packets in the buffer of one connection
    inflight: int = 100  # unacknowledged packets to one connection
    segment_bytes: int = 4 * 1024 * 1024  # of a topic's log in memory ...
    segments: int = 4  # ... and how many of them are kept
    payload_bytes: int = MAX_PAYLOAD_BYTES + _HEADROOM_BYTES
    connect_timeout_ms: int = 30_000
    start_timeout_s: float = 15.0
    stop_timeout_s: float = 5.0
    start_attempts: int = 5
    restart_first_s: float = 0.2
    restart_most_s: float = 10.0
    healthy_s: float = 30.0  # alive for this long: the next restart is quick again


class Broker(Protocol):
    """A broker the fleet manager can use."""

    @property
    def address(self) -> Address:
        """Where it listens; known once ``start`` has returned."""
        ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class ExternalBroker:
    """A broker that others run, for example Mosquitto."""

    def __init__(self, host: str, port: int, *, tls: bool = False) -> None:
        """Raises agent.errors.ConfigError: ``host`` is not a loopback address and there is no TLS."""
        self._address = Address(host if tls else require_loopback(host, "[broker] mode"), port)

    @property
    def address(self) -> Address:
        return self._address

    async def start(self) -> None:
        """Nothing to start: whoever connects finds out whether it is there."""

    async def stop(self) -> None:
        """Nothing to stop."""


class EmbeddedBroker:
    """iotcore in a child process, on loopback only."""

    def __init__(self, host: str, port: int, limits: BrokerLimits | None = None) -> None:
        """``port`` 0: a free one. Raises agent.errors.ConfigError: not a loopback address."""
        host = require_loopback(host, "[broker] listen")
        self._host = "127.0.0.1" if host == "localhost" else host.strip("[]")
        self._wanted_port = port
        self._limits = limits or BrokerLimits()
        self._address: Address | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def address(self) -> Address:
        assert self._address is not None, "the embedded broker has not been started"
        return self._address

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process and wait until it accepts connections.

        Raises:
            BrokerError: it does not come up, for example because the port is in use.
        """
        for attempt in range(1, self._limits.start_attempts + 1):
            self._address = Address(self._host, self._wanted_port or _free_port(self._host))
            try:
                await self._spawn()
                break
            except BrokerError:
                # A free port may be taken by another between our look and the broker's bind.
                if self._wanted_port or attempt == self._limits.start_attempts:
                    raise
        self._watch = asyncio.create_task(self._supervise(), name="embedded broker")

    async def stop(self) -> None:
        """Stop supervising and end the process."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        await self._end()

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = self._limits.restart_first_s
        while True:
            started = loop.time()
            if self._process is not None:
                code = await self._process.wait()
                self.restarts += 1
                _LOG.error("the embedded broker ended with code %s; starting it again", code)
            if loop.time() - started >= self._limits.healthy_s:
                pause_s = self._limits.restart_first_s
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, self._limits.restart_most_s)
            try:
                await self._spawn()
                _LOG.warning("the embedded broker listens on %s again", self.address)
            except BrokerError as error:
                _LOG.error("%s; trying again in %.1f s", error, pause_s)

    async def _spawn(self) -> None:
        address = self.address
        if await _accepts(address):
            raise BrokerError(
                f"the embedded broker cannot listen on {address}: something else does. "
                "Stop it, or set [broker] listen to another port."
            )
        with tempfile.TemporaryDirectory(prefix="muster-broker-") as folder:
            config = _write_config(Path(folder), address, self._limits)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "fleet.messaging.embedded", str(config),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            try:
                await self._wait_ready(self._process, address)
            except BaseException:
                await self._end()
                raise

    async def _wait_ready(self, process: asyncio.subprocess.Process, address: Address) -> None:
        ended = asyncio.create_task(process.wait())
        try:
            async with asyncio.timeout(self._limits.start_timeout_s):
                while not await _accepts(address):
                    done, _ = await asyncio.wait({ended}, timeout=0.05)
                    if done:
                        raise BrokerError(
                            f"the embedded broker ended with code {ended.result()} while "
                            f"starting on {address}"
                        )
        except TimeoutError as error:
            raise BrokerError(
                f"the embedded broker did not listen on {address} within "
                f"{self._limits.start_timeout_s:g} s"
            ) from error
        finally:
            ended.cancel()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            for stop in (process.terminate, process.kill):
                if await _ended(process, stop, self._limits.stop_timeout_s):
                    break
        if process.stdin is not None:
            process.stdin.close()


async def _ended(
    process: asyncio.subprocess.Process, stop: Callable[[], None], timeout_s: float
) -> bool:
    with contextlib.suppress(ProcessLookupError):
        stop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await process.wait()
            return True
    return False


async def _accepts(address: Address) -> bool:
    try:
        _, writer = await asyncio.open_connection(address.host, address.port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def _write_config(folder: Path, address: Address, limits: BrokerLimits) -> Path:
    text = _CONFIG.format(
        connections=limits.connections,
        outgoing=limits.outgoing,
        inflight=limits.inflight,
        segment_bytes=limits.segment_bytes,
        segments=limits.segments,
        payload_bytes=limits.payload_bytes,
        connect_timeout_ms=limits.connect_timeout_ms,
        listen=str(address),
    )
    path = folder / "broker.toml"
    path.write_text(text, encoding="utf-8")
    return path
