"""``fleet`` that dies by SIGKILL when a device's report of one phase comes in.

``MUSTER_TEST_KILL=before:try`` dies before the report is committed, ``after:try`` once it is committed and before it
is acknowledged. Everything else is the fleet manager's own code.
"""

import os
import signal
from collections.abc import Sequence

from sqlalchemy import Connection

from fleet.cli.entry import main
from fleet.monitor import ingest
from fleet.monitor.record import Recorded, record
from fleet.monitor.reports import Kind, ParsedReport

WHEN, _, PHASE = os.environ["MUSTER_TEST_KILL"].partition(":")


def _is_phase(report: ParsedReport) -> bool:
    return report.kind is Kind.EVENT and report.row["phase"] == PHASE


def killed_record(
    connection: Connection, reports: Sequence[ParsedReport], now_s: float
) -> Recorded:
    hit = any(_is_phase(report) for report in reports)
    if hit and WHEN == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    done = record(connection, reports, now_s)
    if hit and WHEN == "after":
        connection.commit()
        os.kill(os.getpid(), signal.SIGKILL)
    return done


if __name__ == "__main__":
    ingest.record = killed_record
    main()
