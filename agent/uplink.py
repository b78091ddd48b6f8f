"""The links to the fleet manager and the one task that empties the spool through them.

Rules kept here:
- A report leaves the spool when the fleet manager acknowledges it, over whichever link; one batch is on its way at a
  time, and the same batch goes out again until it is acknowledged.
- The first link is preferred. The next one is brought up when the first has been down for ``fallback_after_s``, or
  when it is up but ``strikes`` batches in a row stayed unanswered (a broker that lives while nobody listens behind
  it); such a link gets a batch again every ``probe_s``.
- Retries wait longer each time, with jitter; nothing here ever gives up or raises for a bad network.
- A pack says that the fleet manager is there, perhaps anew: what it has not acknowledged goes out again at once.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.alarm import Alarm
from agent.errors import DeviceError, LinkError
from agent.health.spool import ReportId, Spool
from agent.ports import Clock, DownlinkMessage, Link
from protos import report_pb2

__all__ = ["LinkState", "Uplink", "UplinkLimits", "choose"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UplinkLimits:
    fallback_after_s: float = 10.0
    ack_timeout_s: float = 15.0
    resend_after_s: float = 1.0  # the same once a pack has shown that the fleet manager is there
    retry_first_s: float = 1.0
    retry_most_s: float = 60.0
    strikes: int = 2
    probe_s: float = 300.0


@dataclass(slots=True)
class LinkState:
    """What is known of one link. ``strikes``: batches in a row that were not acknowledged."""

    connected: bool = False
    strikes: int = 0
    struck_s: float = 0.0

    def healthy(self, limits: UplinkLimits, now_s: float) -> bool:
        """Whether a batch is worth handing over. ``now_s`` is monotonic."""
        if not self.connected:
            return False
        return self.strikes < limits.strikes or now_s - self.struck_s >= limits.probe_s


def choose(states: Sequence[LinkState], limits: UplinkLimits, now_s: float) -> int | None:
    """The link for the next batch: the first healthy one, else the first connected one, else none."""
    for index, state in enumerate(states):
        if state.healthy(limits, now_s):
            return index
    for index, state in enumerate(states):
        if state.connected:
            return index
    return None


class Uplink:
    """Owns the links and the spool."""

    def __init__(
        self,
        links: Sequence[Link],
        spool: Spool,
        clock: Clock,
        limits: UplinkLimits | None = None,
        randomness: random.Random | None = None,
    ) -> None:
        """``links``: the preferred one first."""
        self._links = tuple(links)
        self._spool = spool
        self._clock = clock
        self._limits = limits or UplinkLimits()
        self._random = randomness or random.Random()  # noqa: S311 (spreads load, guards nothing)
        self._states = [LinkState(connected=link.connected) for link in self._links]
        self._work = Alarm(clock)
        self._acked = Alarm(clock)
        self._switch = Alarm(clock)
        self._awaited: set[ReportId] = set()
        self._ack_by_s = 0.0
        self._on_pack: Callable[[bytes], None] = lambda _: None
        self._on_connect: Callable[[], None] = lambda: None
        self._acknowledged = 0

    @property
    def connected(self) -> tuple[str, ...]:
        """Names of the links that are up."""
        return tuple(
            link.name
            for link, state in zip(self._links, self._states, strict=True)
            if state.connected
        )

    @property
    def acknowledged(self) -> int:
        """Reports the fleet manager has taken since start."""
        return self._acknowledged

    def put(self, report: report_pb2.Report) -> None:
        """Keep a report and send it. Raises DeviceError when the spool cannot keep it."""
        self._spool.put(report)
        self._work.set()

    async def run(self, on_pack: Callable[[bytes], None], on_connect: Callable[[], None]) -> None:
        """Keep links up and the spool empty until cancelled."""
        self._on_pack, self._on_connect = on_pack, on_connect
        async with asyncio.TaskGroup() as tasks:
            for index, link in enumerate(self._links):
                tasks.create_task(self._read(index, link))
            if self._links:
                tasks.create_task(self._links[0].run())
            if len(self._links) > 1:
                tasks.create_task(self._keep_fallback(self._links[1]))
            tasks.create_task(self._send())

    # --- links ------------------------------------------------------------------------------------

    async def _read(self, index: int, link: Link) -> None:
        async for message in link.messages():
            self._receive(index, message)

    def _receive(self, index: int, message: DownlinkMessage) -> None:
        state = self._states[index]
        if message.connected is not None:
            state.connected = message.connected
            self._switch.set()
            self._work.set()
            if message.connected:
                self._on_connect()
            return
        if message.pack is not None:
            self._on_pack(message.pack)
            self._expect_soon(index)
        if message.ack is not None:
            self._take_ack(index, message.ack)

    def _take_ack(self, index: int, ack: report_pb2.ReportAck) -> None:
        ids = {(report.boot_id, report.seq) for report in ack.ids}
        try:
            self._acknowledged += self._spool.ack(ids)
        except DeviceError as error:
            # It goes out once more; the fleet manager knows it by its name.
            log.error("an acknowledged report stays in the spool: %s", error)
        if self._states[index].strikes:
            self._states[index].strikes = 0
            self._switch.set()
        self._awaited -= ids
        if not self._awaited:
            self._acked.set()

    def _expect_soon(self, index: int) -> None:
        """The fleet manager is there: an acknowledgement that is due comes soon, or its batch got lost."""
        self._states[index].strikes = 0
        self._ack_by_s = min(
            self._ack_by_s, self._clock.monotonic_s() + self._limits.resend_after_s
        )
        self._work.set()
        self._acked.set()

    async def _keep_fallback(self, link: Link) -> None:
        first = self._states[0]
        was_up, down_since = first.connected, self._clock.monotonic_s()
        task: asyncio.Task[None] | None = None
        try:
            while True:
                now = self._clock.monotonic_s()
                if first.connected or was_up:
                    down_since = now
                was_up = first.connected
                down_for = now - down_since
                struck = first.strikes >= self._limits.strikes
                wanted = struck or (
                    not first.connected and down_for >= self._limits.fallback_after_s
                )
                if wanted and task is None:
                    log.info(
                        "bringing up the %s link: the preferred one does not answer", link.name
                    )
                    task = asyncio.create_task(link.run())
                elif not wanted and task is not None and first.connected:
                    log.info("the preferred link answers again; the %s link goes down", link.name)
                    await _stop(task)
                    task = None
                if task is not None and task.done():
                    task.result()
                wait_s = self._limits.fallback_after_s - down_for
                await self._switch.wait(None if first.connected or task else max(wait_s, 0.01))
        finally:
            if task is not None:
                await _stop(task)

    # --- reports ----------------------------------------------------------------------------------

    async def _send(self) -> None:
        failures = 0
        while True:
            index = self._next_link()
            if index is None or not self._spool.stats().reports:
                await self._work.wait()
                continue
            if await self._send_batch(index):
                failures = 0
                continue
            bound = min(
                self._limits.retry_first_s * 2.0 ** min(failures, 30), self._limits.retry_most_s
            )
            failures += 1
            await self._work.wait(bound * (0.5 + 0.5 * self._random.random()))

    def _next_link(self) -> int | None:
        for state, link in zip(self._states, self._links, strict=True):
            state.connected = link.connected
        return choose(self._states, self._limits, self._clock.monotonic_s())

    async def _send_batch(self, index: int) -> bool:
        link = self._links[index]
        try:
            reports = self._spool.batch()
        except DeviceError as error:
            log.error("no report can be sent: %s", error)
            return False
        self._awaited = {(report.boot_id, report.seq) for report in reports}
        self._acked = Alarm(self._clock)
        latest_s = self._clock.monotonic_s() + self._limits.ack_timeout_s
        self._ack_by_s = latest_s
        try:
            await link.send(report_pb2.ReportBatch(reports=reports))
        except LinkError as error:
            log.info("reports wait: %s", error)
            self._strike(index)
            return False
        while self._awaited and (left_s := self._ack_by_s - self._clock.monotonic_s()) > 0:
            await self._acked.wait(left_s)
        # Acknowledged; or lost while nobody was there to hear it, and then it goes out again at once.
        if not self._awaited or self._ack_by_s < latest_s:
            return True
        log.info(
            "%d reports sent over %s were not acknowledged within %.0f s",
            len(self._awaited), link.name, self._limits.ack_timeout_s,
        )  # fmt: skip
        self._strike(index)
        return False

    def _strike(self, index: int) -> None:
        state = self._states[index]
        state.strikes += 1
        state.struck_s = self._clock.monotonic_s()
        self._switch.set()


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        # Ours; a cancellation of the caller comes again at its next await.
        if not task.cancelled():
            raise
