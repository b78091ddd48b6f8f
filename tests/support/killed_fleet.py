"""``fleet`` that dies by SIGKILL when a device's report of one phase comes in.

``MUSTER_TEST_KILL=before:try`` dies before the report is committed, ``after:try`` once it is committed and before it
is acknowledged. ``MUSTER_TEST_KILL=@file`` does what that file says when a report comes in. Everything else is the
fleet manager's own code.
"""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection

from fleet.cli.entry import main
from fleet.monitor import ingest
from fleet.monitor.record import Recorded, record
from fleet.monitor.reports import Kind, ParsedReport

ORDER = os.environ["MUSTER_TEST_KILL"]


def _order() -> tuple[str, str]:
    """When to die, and at the report of which phase."""
    said = ORDER
    if said.startswith("@"):
        path = Path(said[1:])
        said = path.read_text(encoding="utf-8") if path.exists() else ""
    when, _, phase = said.partition(":")
    return when, phase


def _is_phase(report: ParsedReport, phase: str) -> bool:
    return report.kind is Kind.EVENT and report.row["phase"] == phase


def killed_record(
    connection: Connection, reports: Sequence[ParsedReport], now_s: float
) -> Recorded:
    when, phase = _order()
    hit = any(_is_phase(report, phase) for report in reports)
    if hit and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    done = record(connection, reports, now_s)
    if hit and when == "after":
        connection.commit()
        os.kill(os.getpid(), signal.SIGKILL)
    return done


if __name__ == "__main__":
    ingest.record = killed_record
    main()
