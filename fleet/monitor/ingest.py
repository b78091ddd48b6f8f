"""Taking in what devices report, from every way they have.

Rules kept here: an acknowledgement is given only after the commit; reports that arrive together are
committed together; a malformed report is counted, logged and dropped, and what can be named is
acknowledged so that its device does not send it for ever; everything that waits is bounded, and who
brings more waits too.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection

from fleet.errors import FleetError, ServerError
from fleet.monitor.record import Recorded, record
from fleet.monitor.reports import DEVICE_ID, Kind, ParsedReport, ReportRefusedError, parse_report
from fleet.registry.devices import register, set_online
from fleet.registry.presence import Presence, Way
from fleet.store.writer import Writer
from protos import report_pb2

__all__ = ["Ingest", "IngestCounters", "IngestLimits"]

_LOG = logging.getLogger(__name__)
_LOG_EVERY: Final = 100  # of the refused reports of one kind after the first ten


@dataclass(frozen=True, slots=True)
class IngestLimits:
    queued_batches: int = 1024  # waiting for the writer; then those who bring more wait
    commit_reports: int = 2000  # in one transaction


@dataclass(slots=True)
class IngestCounters:
    """Since the start of the process."""

    windows: int = 0
    events: int = 0
    inventories: int = 0
    repeated: int = 0
    commits: int = 0
    failed_commits: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # by code


@dataclass(frozen=True, slots=True)
class _Item:
    """One batch of reports, or one change of presence, on its way to the writer."""

    reports: tuple[ParsedReport, ...]
    online: tuple[str, bool] | None
    done: asyncio.Future[None]


class Ingest:
    """One queue, one writer. ``run`` does the work; ``submit`` may be called from many tasks."""

    def __init__(
        self,
        writer: Writer,
        limits: IngestLimits | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._writer = writer
        self._limits = limits or IngestLimits()
        self._now_s = now_s
        self._queue: asyncio.Queue[_Item] = asyncio.Queue(self._limits.queued_batches)
        self._presence = Presence()
        self.counters = IngestCounters()

    async def submit(self, device_id: str, batch: report_pb2.ReportBatch) -> report_pb2.ReportAck:
        """Store the reports of one device; the acknowledgement, once they are committed.

        Raises:
            ServerError: they could not be committed; the device keeps them and sends them again.
        """
        parsed: list[ParsedReport] = []
        ack = report_pb2.ReportAck()
        for report in batch.reports:
            try:
                parsed.append(parse_report(report, device_id))
            except ReportRefusedError as refusal:
                self.refused(device_id, refusal.code, str(refusal))
                if report.device_id != device_id:
                    continue
            ack.ids.add(boot_id=report.boot_id, seq=report.seq)
        if parsed:
            await self._put(tuple(parsed), None)
        return ack

    async def present(self, device_id: str, way: Way, up: bool) -> None:
        """Note that a way to a device opened or closed.

        Raises:
            ServerError: that could not be stored.
        """
        if not DEVICE_ID.fullmatch(device_id):
            self.refused(device_id, "device_id", "it is no device id")
            return
        online = self._presence.changed(device_id, way, up)
        if online is not None:
            await self._put((), (device_id, online))

    def refused(self, device_id: str, code: str, text: str) -> None:
        """Count and log something a device sent that cannot be used."""
        self.counters.refused[code] += 1
        count = self.counters.refused[code]
        if count <= 10 or count % _LOG_EVERY == 0:
            _LOG.warning(
                "report of %.80r dropped (%s, %d so far): %s", device_id, code, count, text
            )

    async def run(self) -> None:
        """Commit what is submitted, until cancelled."""
        while True:
            items = [await self._queue.get()]
            size = len(items[0].reports)
            while size < self._limits.commit_reports and not self._queue.empty():
                items.append(self._queue.get_nowait())
                size += len(items[-1].reports)
            await self._commit(items)

    async def _put(
        self, reports: tuple[ParsedReport, ...], online: tuple[str, bool] | None
    ) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._queue.put(_Item(reports, online, done))
        await done

    async def _commit(self, items: list[_Item]) -> None:
        now_s = self._now_s()
        try:
            recorded = await self._writer.run(lambda connection: _store(connection, items, now_s))
        except FleetError as error:
            self.counters.failed_commits += 1
            _LOG.error("%d batches of reports were not stored: %s", len(items), error)
            _settle(items, error)
        except asyncio.CancelledError:
            _settle(items, ServerError("the fleet manager is stopping"))
            raise
        except Exception as error:  # noqa: BLE001 (a bug met by one batch must not end the intake)
            self.counters.failed_commits += 1
            _LOG.exception("%d batches of reports were not stored", len(items))
            _settle(items, ServerError(f"reports could not be stored: {error}"))
        else:
            self._count(recorded)
            _settle(items, None)
            _log_failures(items)

    def _count(self, recorded: Recorded) -> None:
        counters = self.counters
        counters.commits += 1
        counters.windows += recorded.windows
        counters.events += recorded.events
        counters.inventories += recorded.inventories
        counters.repeated += recorded.repeated


def _store(connection: Connection, items: list[_Item], now_s: float) -> Recorded:
    recorded = record(connection, [one for item in items for one in item.reports], now_s)
    states = dict(item.online for item in items if item.online is not None)
    register(connection, states, now_s)
    for device_id, online in states.items():
        set_online(connection, device_id, online)
    return recorded


def _log_failures(items: list[_Item]) -> None:
    """One line for each device that refused or put back a bundle."""
    for item in items:
        for report in item.reports:
            row = report.row
            if report.kind is Kind.EVENT and row["outcome"] in ("refused", "reverted"):
                ids = {"device": report.device_id, "rollout": row["rollout_id"]}
                ids |= {"model": row["model"], "bundle": row["bundle"]}
                _LOG.info(
                    "device %s %s %s (%s): %s",
                    report.device_id, row["outcome"], row["bundle"], row["reason_code"],
                    row["reason"], extra=ids,
                )  # fmt: skip


def _settle(items: list[_Item], error: FleetError | None) -> None:
    for item in items:
        if item.done.done():
            continue  # whoever waited was cancelled
        if error is None:
            item.done.set_result(None)
        else:
            item.done.set_exception(error)
