"""``python -m benchmarks.rollout_outcomes [--devices N] [--only NAME] [--json] [--publish]``.

Bundles with known faults, rolled out side by side to one fleet over the wire: a real ``fleet serve`` with its embedded
broker, simulated devices, real agents whose clients give feedback. Says how each rollout ended, by which guard, after
how long and with how many devices exposed, and whether the audit makes the same decisions again; ends with 1 when one
did not end as it must. ``--publish`` writes the section of results.md.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.results_file import RESULTS, put_section
from benchmarks.rollout_outcomes.cases import CASES
from benchmarks.rollout_outcomes.report import markdown, terminal
from benchmarks.rollout_outcomes.run import Setting, run_cases


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, report."""
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rollout_outcomes", description=__doc__
    )
    parser.add_argument("--devices", type=int, default=Setting().devices, help="simulated ones")
    parser.add_argument("--only", choices=names, action="append", help="may be given repeatedly")
    parser.add_argument("--folder", type=Path, help="keep homes and logs here")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--publish", action="store_true")
    given = parser.parse_args(arguments)
    cases = [case for case in CASES if not given.only or case.name in given.only]
    setting = replace(Setting(), devices=given.devices)
    began_s = time.monotonic()

    def say(text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began_s:6.0f} s  {text}\n")

    with tempfile.TemporaryDirectory(prefix="muster-outcomes-") as made:
        outcomes = run_cases(cases, setting, given.folder or Path(made), say)
    shown = (
        json.dumps([one.to_json() for one in outcomes], indent=1)
        if given.json
        else terminal(outcomes)
    )
    sys.stdout.write(shown + "\n")
    if given.publish:
        put_section(RESULTS, "rollout outcomes", markdown(outcomes, setting))
    return 0 if all(one.is_right for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
