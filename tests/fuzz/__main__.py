"""Longer runs, guided by coverage: ``python -m tests.fuzz [TARGET ...] [--seconds N] [--corpus FOLDER] [--json]``.

Needs the extra ``fuzz`` (atheris). Each target runs alone in a process of its own at the lowest priority, from its
seeds and from what the corpus folder holds of earlier runs, which grows by what is new. A finding is an input on which
the target raised, took more than ``--limit-s`` seconds or made the process larger than ``--rss-mb``; it is kept in the
corpus folder under ``TARGET-findings``, and the command that plays it again is printed. The code is 1 then.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.fuzz.bed import all_targets

ROOT: Final = Path(__file__).resolve().parents[2]
_STAT: Final = re.compile(r"^stat::(\w+):\s+(\d+)", re.MULTILINE)
_COVERED: Final = re.compile(r"\bcov: (\d+)")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one target. ``rss_mb``: the largest the process was; ``covered``: counters of instrumented code that moved."""

    target: str
    executions: int
    seconds: int
    covered: int
    rss_mb: int
    findings: tuple[str, ...]


def seeds() -> Mapping[str, Sequence[bytes]]:
    """Of every target."""
    with tempfile.TemporaryDirectory() as folder, all_targets(Path(folder)) as targets:
        return {name: tuple(target.seeds) for name, target in targets.items()}


def run(name: str, valid: Sequence[bytes], corpus: Path, options: argparse.Namespace) -> Outcome:
    """Fuzz one target for as long as the options say."""
    kept, findings = corpus / name, corpus / f"{name}-findings"
    for folder in (kept, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in valid:
        (kept / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    command = [
        sys.executable, "-m", "tests.fuzz.long", name, str(kept), f"-max_total_time={options.seconds}",
        f"-timeout={options.limit_s}", f"-rss_limit_mb={options.rss_mb}", f"-seed={options.seed}",
        "-max_len=65536", "-print_final_stats=1", f"-artifact_prefix={findings}/",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, text=True,
        errors="replace", preexec_fn=lambda: os.nice(19) and None,
    )  # fmt: skip
    found = tuple(str(path) for path in sorted(findings.iterdir()))
    if done.returncode and not found:
        raise SystemExit(f"{name}: the run failed\n{done.stdout[-4000:]}")
    if done.returncode:
        print(done.stdout[-4000:], file=sys.stderr)
    return outcome(name, done.stdout, options.seconds, found)


def outcome(name: str, said: str, seconds: int, findings: tuple[str, ...]) -> Outcome:
    """What libFuzzer said at its end, read."""
    stats = {key: int(value) for key, value in _STAT.findall(said)}
    covered = [int(count) for count in _COVERED.findall(said)]
    return Outcome(
        name, stats.get("number_of_executed_units", 0), seconds, max(covered, default=0),
        stats.get("peak_rss_mb", 0), findings,
    )  # fmt: skip


def table(outcomes: Sequence[Outcome]) -> str:
    """For docs/fuzzing.md."""
    rows = [
        f"| `{one.target}` | {one.seconds} s | {one.executions:,} | {one.covered:,} | {one.rss_mb} MB "
        f"| {len(one.findings)} |"
        for one in outcomes
    ]
    head = "| target | time | executions | counters covered | most memory | findings |\n|---|---|---|---|---|---|"
    return "\n".join([head, *rows])


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    made.add_argument("targets", nargs="*", help="which; all when none is named")
    made.add_argument("--seconds", type=int, default=60, help="for each target")
    made.add_argument("--corpus", type=Path, help="a folder that outlives the run")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--limit-s", type=int, default=20, help="for one input")
    made.add_argument("--rss-mb", type=int, default=1024, help="of the whole process")
    made.add_argument("--json", action="store_true")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and say whether something was found."""
    options = parser().parse_args(arguments)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install -e '.[fuzz]'", file=sys.stderr)
        return 2
    known = seeds()
    unknown = sorted(set(options.targets) - set(known))
    if unknown:
        print(f"no target {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    outcomes = []
    given = nullcontext(str(options.corpus)) if options.corpus else tempfile.TemporaryDirectory()
    with given as corpus:
        for name in options.targets or known:
            outcomes.append(run(name, known[name], Path(corpus).resolve(), options))
            for finding in outcomes[-1].findings:
                print(
                    f"again: {sys.executable} -m tests.fuzz.long {name} {finding}", file=sys.stderr
                )
    print(json.dumps([asdict(one) for one in outcomes]) if options.json else table(outcomes))
    return 1 if any(one.findings for one in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
