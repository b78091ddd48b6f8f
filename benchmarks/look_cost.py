"""What counting and looking cost: ``python -m benchmarks.look_cost [--devices N ...] [--json]``.

Of a rollout at 10 % over N devices whose windows go the way of reports into a real database: storing a window with
and without a rollout under way, beginning a stage, a tick at which nothing is due, a tick with a look (reading
included), and how many bytes a look leaves. Processor time of this process: other work matters little.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import func, select

from fleet.rollout import records
from fleet.rollout.looks import read_evidence
from fleet.rollout.rings import begin_ring
from fleet.store import open_store
from fleet.store.tables import looks
from tests.support.evidence_fleet import EvidenceFleet

DEFAULT: Final = (1000, 10_000)
BATCH: Final = 2000  # reports in one transaction, as the fleet manager has them


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one fleet; milliseconds of processor time, and bytes."""

    devices: int
    canaries: int
    compared: int
    window_ms: float
    window_in_rollout_ms: float
    begin_ms: float
    idle_ms: float
    look_ms: float
    first_look_ms: float
    look_bytes: int


def measure(devices: int, home: Path) -> Cost:
    """One fleet, in a database of its own."""
    fleet = EvidenceFleet(open_store(home / "fleet.db"), size=devices)
    fleet.history(hours=1, windows_per_hour=1)
    plain_s = _timed(lambda: _minute(fleet))
    fleet.start(1000, 10_000, bake_s=3600.0)
    begin_s = _timed(lambda: _begin(fleet))
    fleet.install()
    counted_s = [_timed(lambda: _minute(fleet)) for _ in range(4)][-1]
    first_s = _timed(lambda: _evidence(fleet))
    fleet.tick()
    idle_s = min(_timed(lambda: _evidence(fleet)) for _ in range(5))
    look_s = []
    for _ in range(3):
        _minute(fleet)
        look_s.append(_timed(lambda: _evidence(fleet)))
        fleet.tick()
    with fleet.store.read() as connection:
        stored = int(connection.scalar(select(func.max(func.length(looks.c.counts)))) or 0)
        evidence = read_evidence(connection, fleet.rollout(), fleet.now_s)
    assert evidence is not None
    ring = evidence.frozen.ring
    fleet.store.close()
    return Cost(
        devices, ring.canaries, ring.size, 1000 * plain_s / devices, 1000 * counted_s / devices,
        1000 * begin_s, 1000 * idle_s, 1000 * sorted(look_s)[1], 1000 * first_s, stored,
    )  # fmt: skip


def _minute(fleet: EvidenceFleet) -> None:
    fleet.now_s += 60
    for start in range(0, fleet.size, BATCH):
        fleet.report(fleet.ids[start : start + BATCH])


def _begin(fleet: EvidenceFleet) -> None:
    with fleet.store.begin() as connection:
        begin_ring(connection, fleet.rollout(), None, fleet.now_s)


def _evidence(fleet: EvidenceFleet) -> None:
    with fleet.store.read() as connection:
        rollout = records.get_rollout(connection, "r1")
        read_evidence(connection, rollout, fleet.now_s)


def _timed(work: Callable[[], Any]) -> float:
    began_s = time.process_time()
    work()
    return time.process_time() - began_s


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, nargs="+", default=list(DEFAULT))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    costs = []
    for devices in options.devices:
        with tempfile.TemporaryDirectory() as home:
            costs.append(measure(devices, Path(home)))
    if options.json:
        print(json.dumps([asdict(cost) for cost in costs], indent=1))
        return
    names = list(asdict(costs[0]))
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for cost in costs:
        print("| " + " | ".join(f"{value:.4g}" for value in asdict(cost).values()) + " |")


if __name__ == "__main__":
    main()
