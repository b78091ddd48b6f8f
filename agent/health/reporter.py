"""Gives each report its name, (boot id, sequence number), and hands it to whoever keeps it until acknowledged."""

import logging
from collections.abc import Callable
from typing import Final

from agent.errors import DeviceError
from agent.ports import Clock
from protos import report_pb2

__all__ = ["Reporter"]

log = logging.getLogger(__name__)

_MAX_TEXT_CHARS: Final = 2000
_CUT: Final = " …"


class Reporter:
    """The only maker of reports on a device. Owned by the supervisor."""

    __slots__ = ("_boot_id", "_clock", "_device_id", "_lost", "_put", "_seq")

    def __init__(
        self,
        device_id: str,
        boot_id: str,
        clock: Clock,
        put: Callable[[report_pb2.Report], None],
    ) -> None:
        """``boot_id``: random, made anew at each start. ``put``: keeps a report; may raise DeviceError."""
        self._device_id = device_id
        self._boot_id = boot_id
        self._clock = clock
        self._put = put
        self._seq = 0
        self._lost = 0

    @property
    def lost(self) -> int:
        """Reports that the disk would not keep."""
        return self._lost

    def inventory(self, inventory: report_pb2.Inventory) -> None:
        self._keep(report_pb2.Report(inventory=inventory))

    def window(self, window: report_pb2.Window) -> None:
        self._keep(report_pb2.Report(window=window))

    def deployment(self, event: report_pb2.DeploymentEvent) -> None:
        """A reason that is too long is cut: a report must fit one message."""
        kept = report_pb2.DeploymentEvent()
        kept.CopyFrom(event)
        if len(kept.reason) > _MAX_TEXT_CHARS:
            kept.reason = kept.reason[: _MAX_TEXT_CHARS - len(_CUT)] + _CUT
        self._keep(report_pb2.Report(deployment=kept))

    def _keep(self, report: report_pb2.Report) -> None:
        self._seq += 1
        report.device_id = self._device_id
        report.boot_id = self._boot_id
        report.seq = self._seq
        report.created_unix_ms = int(self._clock.now_s() * 1000)
        try:
            self._put(report)
        except DeviceError as error:
            # The device goes on serving; that it cannot tell of it is the smaller harm.
            self._lost += 1
            log.error("a %s report is lost: %s", report.WhichOneof("body"), error)
