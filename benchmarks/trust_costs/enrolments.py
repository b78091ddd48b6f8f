"""Enrolments and renewals a second: a real fleet manager in a process of its own, and the agent's own calls to it.

Each enrolment is a connection of its own over TLS, as a device makes it. A renewal is a call over the connection that
the device has, and the first use of the new certificate over another. Keys and proofs for enrolments are made before
the clock starts: on a fleet's devices they cost the fleet manager nothing.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

import psutil

from agent.adapters.enrol_link import EnrolLink, Renewals
from agent.adapters.grpc_link import channel_options
from agent.adapters.tls_channel import RenewableChannel, TlsMaterial
from agent.identity.certificate import new_key, parse_key, public_der, request, sign
from agent.identity.enrol import EnrolRequest
from benchmarks.trust_costs.serving import device_name
from protos.identity import enrol_message

__all__ = ["Rate", "measure"]

ROOT: Final = Path(__file__).resolve().parents[2]
OPTIONS: Final = channel_options(None)
_WARM: Final = 4


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one kind of call. ``server_ms``: processor time of the fleet manager for each."""

    what: str
    clients: int
    count: int
    a_second: float
    median_ms: float
    p95_ms: float
    server_ms: float


@dataclass(frozen=True, slots=True)
class _Device:
    id: str
    key: bytes
    asked: EnrolRequest


@dataclass(frozen=True, slots=True)
class _Server:
    process: psutil.Process
    grpc: str
    enrolment: str
    server_ca: bytes
    tokens: Sequence[str]

    def spent_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


def measure(
    enrolments: int, renewals: int, folder: Path, clients: Sequence[int] = (1, 8)
) -> list[Rate]:
    """So many of each with each number of clients at once, against one fleet manager in ``folder``."""
    devices = (enrolments + _WARM) * len(clients)
    with _serving(folder, devices) as server:
        made = [_device(number, server.tokens[number]) for number in range(devices)]
        return asyncio.run(_measure(server, made, renewals, clients))


async def _measure(
    server: _Server, devices: Sequence[_Device], renewals: int, clients: Sequence[int]
) -> list[Rate]:
    rates: list[Rate] = []
    enrolled: list[tuple[_Device, bytes]] = []
    link = EnrolLink(server.enrolment, server.server_ca, OPTIONS)

    async def enrol(device: _Device) -> None:
        answer = await link.enrol(device.asked)
        enrolled.append((device, answer.chain))

    share = len(devices) // len(clients)
    for place, count in enumerate(clients):
        mine = devices[place * share : (place + 1) * share]
        await _all(enrol, mine[:_WARM], count)
        rates.append(await _rate("enrol", server, enrol, mine[_WARM:], count))
    fresh = iter(enrolled)  # a certificate that was left behind is no longer good for anything
    for count in clients:
        steady = [_Renewing(server, *one) for one in islice(fresh, count)]
        for one in steady:
            await one.begin()
        jobs = [one for _ in range(max(1, renewals // count)) for one in steady]
        rates.append(await _rate("renew", server, _Renewing.renew, jobs, count))
        for one in steady:
            await one.close()
    return rates


class _Renewing:
    """A device that renews again and again."""

    def __init__(self, server: _Server, device: _Device, chain: bytes) -> None:
        self._server = server
        self._device = device
        self._material = TlsMaterial(server.server_ca, device.key, chain)
        self._lock = asyncio.Lock()

    async def begin(self) -> None:
        """Use the certificate for the first time."""
        self._channel = RenewableChannel(self._server.grpc, OPTIONS, self._material)
        self._port = Renewals(self._channel, self._server.grpc, None)
        await self._port.confirm(self._device.id)

    async def renew(self) -> None:
        async with self._lock:  # a device renews once at a time
            key = new_key()
            chain = await self._port.renew(request(parse_key(key), self._device.id))
            self._material = TlsMaterial(self._server.server_ca, key, chain)
            before = self._channel
            await self.begin()
            await before.close()

    async def close(self) -> None:
        await self._channel.close()


async def _rate(
    what: str, server: _Server, work: Callable[[Any], Awaitable[None]], jobs: Sequence[Any], clients: int
) -> Rate:  # fmt: skip
    spent_s, began_s = server.spent_s(), time.perf_counter()
    took = await _all(work, jobs, clients)
    whole_s = time.perf_counter() - began_s
    server_ms = 1000 * (server.spent_s() - spent_s) / len(jobs)
    return Rate(
        what, clients, len(jobs), len(jobs) / whole_s, 1000 * median(took),
        1000 * quantiles(took, n=20)[-1], server_ms,
    )  # fmt: skip


async def _all(
    work: Callable[[Any], Awaitable[None]], jobs: Sequence[Any], clients: int
) -> list[float]:
    """Seconds of each job; ``clients`` at once."""
    left: Iterator[Any] = iter(jobs)
    took: list[float] = []

    async def client() -> None:
        for job in left:
            began_s = time.perf_counter()
            await work(job)
            took.append(time.perf_counter() - began_s)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return took


def _device(number: int, token: str) -> _Device:
    name, key, identity = device_name(number), new_key(), parse_key(new_key())
    csr = request(parse_key(key), name)
    proof = sign(identity, enrol_message(name, csr))
    return _Device(name, key, EnrolRequest(token, name, "camera", csr, public_der(identity), proof))


@contextmanager
def _serving(folder: Path, devices: int) -> Iterator[_Server]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.trust_costs.serving",
        str(folder / "home"),
        str(devices),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            said = json.loads(process.stdout.readline())
            yield _Server(
                psutil.Process(process.pid), said["grpc"], said["enrolment"],
                said["server_ca"].encode(), said["tokens"],
            )  # fmt: skip
        finally:
            process.stdin.close()
