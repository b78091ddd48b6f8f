"""What a rollout costs against the size of its fleet: ``python -m benchmarks.fleet_size [--most N] [--publish]``.

100 to 1,000,000 devices as rows of a real database, the fleet manager's own executor, and a repository
that signs. The first hundred devices register and report the way of all reports; every other device
gets copies of the rows that this leaves, made by the database. Devices of the comparison then report
for themselves, in each minute. Each size has a process of its own, whose processor time is what is
told: other work matters little.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, text

from agent.trust import BundleRelease, Directive
from benchmarks.fleet_size_report import HERE, Cost, Run, markdown, plot
from benchmarks.results_file import RESULTS, put_section
from fleet.repository import Repository
from fleet.rollout.executor import Executor
from fleet.rollout.gate.ring import Ring
from fleet.rollout.stored_rings import read_ring, ring_of
from fleet.store import open_store
from tests.support.evidence_fleet import EvidenceFleet
from tests.support.signed_fleet import SignedFleet

__all__ = ["main", "measure"]

SIZES: Final = (100, 1000, 10_000, 100_000, 1_000_000)
TEMPLATES: Final = 100  # devices whose rows are copied
MOST_CANARIES: Final = 1000  # devices of the first stage; a tenth of smaller fleets
MINUTES: Final = 3  # until the first look
_COPIED: Final = {"devices": "id", "device_models": "device_id", "baseline_hours": "device_id"}
"""Tables with rows for each device, and where its id is."""


class _Signer:
    """A repository of which the processor time of signing is kept apart."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.spent_s = 0.0

    def set_directives(self, directives: Sequence[Directive], now_s: float) -> bool:
        began_s = time.process_time()
        try:
            return self.repository.set_directives(directives, now_s)
        finally:
            self.spent_s += time.process_time() - began_s

    def releases(self, now_s: float) -> Mapping[str, BundleRelease]:
        return self.repository.releases(now_s)


def measure(size: int, home: Path) -> Cost:
    """One fleet of at least a hundred devices, in a folder of its own."""
    return asyncio.run(_measure(size, home))


async def _measure(size: int, home: Path) -> Cost:
    fleet = _fleet(size, home)
    signer = _Signer(SignedFleet(home / "signed", now_s=fleet.now_s).repository)
    packs: list[int] = []

    async def published() -> None:
        packs.append(len(signer.repository.pack()))

    executor = Executor(fleet.store, signer, published, now_s=lambda: fleet.now_s)
    fleet.start(max(1, min(1000, 10_000 * MOST_CANARIES // size)), 10_000, bake_s=3600.0)
    await executor.reconcile()
    idle_bytes = _forget_peak()
    open_s = await _spent(executor.tick())
    ring = _ring(fleet)
    fleet.install()
    for _ in range(MINUTES):
        _minute(fleet, ring.device_ids)
    first_look_s = await _spent(executor.tick())
    tick_s = min([await _spent(executor.tick()) for _ in range(3)])
    _minute(fleet, ring.device_ids)
    look_s = await _spent(executor.tick())
    signer.spent_s = 0.0
    change_s = await _spent(executor.advance("r1", reason="the benchmark goes on"))
    next_open_s = await _spent(executor.tick())
    peak_bytes = _memory_bytes("VmHWM")
    fleet.store.close()
    return Cost(
        devices=size, canaries=ring.canaries, compared=ring.size, open_s=open_s, tick_s=tick_s,
        first_look_s=first_look_s, look_s=look_s, decide_s=change_s - signer.spent_s,
        sign_s=signer.spent_s, next_open_s=next_open_s, pack_bytes=packs[-1],
        idle_bytes=idle_bytes, peak_bytes=peak_bytes,
    )  # fmt: skip


async def _spent(work: Coroutine[Any, Any, Any]) -> float:
    began_s = time.process_time()
    await work
    return time.process_time() - began_s


# --- the fleet ------------------------------------------------------------------------------------


def _fleet(size: int, home: Path) -> EvidenceFleet:
    """Devices with an hour of history; from the hundred and first on, copies of the first hundred."""
    fleet = EvidenceFleet(open_store(home / "fleet.db"), size=TEMPLATES)
    fleet.history(hours=1, windows_per_hour=4)
    with fleet.store.begin() as connection:
        for table, column in _COPIED.items():
            _copy(connection, table, column, size)
    fleet.size = size
    fleet.ids = [f"cam-{number:06d}" for number in range(size)]
    fleet.rates = fleet.rates[[number % TEMPLATES for number in range(size)]]
    return fleet


def _copy(connection: Connection, table: str, column: str, size: int) -> None:
    """Give the devices beyond the templates rows like theirs."""
    found = connection.execute(text(f"SELECT name FROM pragma_table_info('{table}')"))
    others = ", ".join(name for name in found.scalars() if name != column)
    place = f"CAST(substr({column}, 5) AS INTEGER)"
    connection.execute(
        text(f"CREATE TEMP TABLE copied AS SELECT {place} AS place, {others} FROM {table}")
    )
    connection.execute(text("CREATE INDEX temp.copied_by_place ON copied (place)"))
    connection.execute(
        text(
            "WITH RECURSIVE numbers(n) AS "
            "(SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :size) "
            f"INSERT INTO {table} ({column}, {others}) SELECT printf('cam-%06d', n), {others} "
            "FROM numbers JOIN copied ON copied.place = n % :first WHERE n < :size"
        ),
        {"first": TEMPLATES, "size": size},
    )
    connection.execute(text("DROP TABLE copied"))


def _minute(fleet: EvidenceFleet, compared: Sequence[str]) -> None:
    """The devices that are compared report; the others were heard and have counts like one of them."""
    fleet.now_s += 60
    fleet.report(compared)
    with fleet.store.begin() as connection:
        connection.execute(text("UPDATE devices SET last_seen_s = :now"), {"now": fleet.now_s})
        connection.execute(
            text(
                "INSERT INTO served SELECT one.ring_id, one.ours, devices.id, one.requests, "
                "one.failures, one.over_objective, one.output_violations, one.last_window_s "
                "FROM devices, (SELECT * FROM served WHERE NOT ours LIMIT 1) AS one "
                "WHERE devices.id NOT IN (SELECT device_id FROM served)"
            )
        )


def _ring(fleet: EvidenceFleet) -> Ring:
    with fleet.store.read() as connection:
        stored = ring_of(connection, fleet.rollout())
        assert stored is not None
        return read_ring(connection, stored.id, stored.digest).ring


# --- memory ---------------------------------------------------------------------------------------


def _forget_peak() -> int:
    """What the process holds now; from here on the kernel notes its peak anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _memory_bytes("VmRSS")


def _memory_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


# --- the script -----------------------------------------------------------------------------------


def run(most: int) -> Run:
    """Every size up to ``most``, each in a process of its own."""
    before = os.getloadavg()[0]
    costs = [_apart(size) for size in SIZES if size <= most]
    return Run(costs, sorted((before, os.getloadavg()[0])))


def _apart(size: int) -> Cost:
    command = [sys.executable, "-m", "benchmarks.fleet_size", "--one", str(size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=HERE.parent)
    return Cost(**json.loads(done.stdout))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then print and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="devices of the largest fleet")
    parser.add_argument("--one", type=int, help="measure one size in this process, and print JSON")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--publish", action="store_true", help="write benchmarks/results.md and fleet_size.svg"
    )
    options = parser.parse_args(arguments)
    if options.one:
        with tempfile.TemporaryDirectory() as home:
            print(json.dumps(asdict(measure(options.one, Path(home)))))
        return
    found = run(options.most)
    if options.publish:
        put_section(RESULTS, "fleet size", markdown(found))
        (HERE / "fleet_size.svg").write_text(plot(found), encoding="utf-8")
    print(json.dumps(asdict(found)) if options.json else markdown(found))


if __name__ == "__main__":
    main()
