"""What trust costs: ``python -m benchmarks.trust_costs [--quick] [--folder DIR] [--json] [--publish]``.

On the device: how long it takes from a pack to a decision, step by step, beside python-tuf's own client; and the memory
that the TUF client and the trust store add. At the fleet manager: enrolments and renewals a second over TLS, by one
client and by eight. ``--folder`` says on which disk everything durable lies.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.results_file import RESULTS, put_section
from benchmarks.serving import machine
from benchmarks.trust_costs import decisions, enrolments, memory
from benchmarks.trust_costs.report import Run, markdown


def run(folder: Path, *, quick: bool) -> Run:
    """Measure everything in new folders below ``folder``."""
    packs, rounds, count = (40, 2, 40) if quick else (400, 7, 400)
    before = os.getloadavg()[0]
    parts = [folder / name for name in ("decisions", "memory", "enrolments")]
    for part in parts:
        part.mkdir()
    return Run(
        machine(),
        decisions.measure(packs, parts[0]),
        memory.measure(parts[1], rounds),
        enrolments.measure(count, count, parts[2]),
        sorted((before, os.getloadavg()[0])),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then print and write what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trust_costs", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of it: does it work at all")
    parser.add_argument("--folder", type=Path, help="a folder on the disk that is to be used")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--publish", action="store_true", help="write benchmarks/results.md")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="muster-benchmark-", dir=options.folder) as folder:
        found = run(Path(folder), quick=options.quick)
    if options.publish:
        put_section(RESULTS, "trust costs", markdown(found))
    print(json.dumps(asdict(found)) if options.json else markdown(found))


if __name__ == "__main__":
    main()
