"""``python -m benchmarks.gate_study [--rollouts N] [--jobs J] [--out FILE] [--worlds A,B] [--json] [--publish]``.

Simulated rollouts in seven worlds, judged by our gate and by five other rules, as they come and made strict, on the
same requests. Each rollout is one line of FILE, keyed by world and number, written as soon as it is done: a run that
was stopped goes on where it was, and a larger N adds to what is there. ``--publish`` writes results.md, gate_study.svg
and gate_study.json.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any, Final

from benchmarks.gate_study.report import cells, markdown, plot, terminal, to_json
from benchmarks.gate_study.worlds import WORLDS, one_rollout
from benchmarks.results_file import RESULTS, put_section

HERE: Final = Path(__file__).parents[1]
SAY_EVERY_S: Final = 5.0
IN_FLIGHT: Final = 8  # rollouts handed out for each process


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rollouts that are done; a line that was being written when the run was stopped is dropped."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            rows[row["world"], row["number"]] = row
    return list(rows.values())


def missing(
    rows: Sequence[dict[str, Any]], worlds: Sequence[str], rollouts: int
) -> list[tuple[str, int]]:
    """What is still to be done, the worlds by turns."""
    done = {(row["world"], row["number"]) for row in rows}
    wanted = [(world, number) for number in range(rollouts) for world in worlds]
    return [key for key in wanted if key not in done]


def run(path: Path, to_do: Sequence[tuple[str, int]], jobs: int) -> None:
    """Do what is missing, in ``jobs`` processes, and append it to the file."""
    began_s = said_s = time.monotonic()
    waiting, done = iter(to_do), 0
    with ProcessPoolExecutor(jobs) as pool, path.open("a", encoding="utf-8") as out:
        if path.stat().st_size and not path.read_text(encoding="utf-8").endswith("\n"):
            out.write("\n")  # a line that was cut off: the next one must not be joined to it
        running = {pool.submit(one_rollout, *key) for key in islice(waiting, IN_FLIGHT * jobs)}
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                out.write(json.dumps(future.result()) + "\n")
            out.flush()
            done += len(ended)
            running |= {pool.submit(one_rollout, *key) for key in islice(waiting, len(ended))}
            if time.monotonic() - said_s > SAY_EVERY_S:
                said_s = time.monotonic()
                each_s = (said_s - began_s) / done
                say(f"{done} of {len(to_do)} rollouts, {each_s:.2f} s each")


def say(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(text + "\n")


def publish(rows: Sequence[dict[str, Any]]) -> None:
    """Put the section into results.md in place of the one before, with plot and figures beside it."""
    found = cells(rows)
    on = f"Simulated on {platform.system()} {platform.machine()} with Python {platform.python_version()}."
    (HERE / "gate_study.svg").write_text(plot(found, rows), encoding="utf-8")
    figures = json.dumps(to_json(found), indent=1, ensure_ascii=False) + "\n"
    (HERE / "gate_study.json").write_text(figures, encoding="utf-8")
    put_section(RESULTS, "gate study", markdown(found, on, "gate_study.svg"))


def main() -> None:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_study", description=__doc__)
    parser.add_argument("--rollouts", type=int, default=200, help="of each world")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("gate_study.jsonl"))
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--publish", action="store_true")
    given = parser.parse_args()
    worlds = [name for name in given.worlds.split(",") if name]
    unknown = set(worlds) - set(WORLDS)
    if unknown:
        parser.error(f"unknown worlds {', '.join(sorted(unknown))}: there are {', '.join(WORLDS)}")
    to_do = missing(read_rows(given.out), worlds, given.rollouts)
    if to_do:
        run(given.out, to_do, given.jobs)
    rows = [
        row
        for row in read_rows(given.out)
        if row["number"] < given.rollouts and row["world"] in worlds
    ]
    found = cells(rows)
    sys.stdout.write(json.dumps(to_json(found), indent=1) if given.json else terminal(found))
    sys.stdout.write("\n")
    if given.publish:
        publish(rows)


if __name__ == "__main__":
    main()
