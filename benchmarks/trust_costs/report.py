"""The figures of ``benchmarks.trust_costs`` as a section of the page of results. Pure."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.trust_costs.decisions import STEPS, Decisions, Spread
from benchmarks.trust_costs.enrolments import Rate
from benchmarks.trust_costs.memory import Memory

__all__ = ["Run", "markdown"]

MB: Final = 1_000_000
_MEANING: Final = {
    "unpack": "size, gzip, names",
    "verify": "every rule of the TUF client, in a scratch folder in memory",
    "commit": "the trust store, SQLite with `synchronous=FULL`, and its witness",
    "read": "directives, releases and emergencies out of what was verified",
    "decide": "what to do about each model",
}
_WHAT: Final = {
    "enrol": "enrolment: a connection over TLS, token, proof, certificate",
    "renew": "renewal: one call, then a connection with the new certificate and its first use",
}


@dataclass(frozen=True, slots=True)
class Run:
    """One run: ``load``: the machine's load averages before and after, sorted."""

    machine: str
    decisions: Decisions
    memory: Memory
    rates: Sequence[Rate]
    load: Sequence[float]


def markdown(run: Run) -> str:
    """The section."""
    decisions, memory = run.decisions, run.memory
    lines = [
        "## What trust costs",
        "",
        "`python -m benchmarks.trust_costs --publish`",
        "",
        f"Measured on: {run.machine}, Python {platform.python_version()}. Load average during the run "
        f"(the benchmark's own load included): {run.load[0]:.1f} to {run.load[-1]:.1f}.",
        "",
        "### Deciding about a pack, on the device",
        "",
        f"{decisions.packs} stage changes of one rollout, one after the other, each a pack of "
        f"{decisions.pack_bytes:,} bytes; time by the clock.",
        "",
        "| step | what | median | p95 |",
        "|---|---|---|---|",
        *(f"| {step} | {_MEANING[step]} | {_cells(decisions.steps[step])} |" for step in STEPS),
        f"| **together** | {decisions.processor_ms:.1f} ms of them processor time "
        f"| {_cells(decisions.whole)} |",
        "| beside it: python-tuf's `Updater` with its own files | the same changes; nothing durable, "
        f"nothing decided | {_cells(decisions.peer)} |",
        "| beside it: one row committed by SQLite | what this disk takes for something durable "
        f"| {_cells(decisions.disk)} |",
        "",
        "### Memory on the device",
        "",
        "A process with everything else that a supervisor imports, with and without the TUF client and a "
        "trust store that were used once.",
        "",
        "| | resident | of it no file's |",
        "|---|---|---|",
        f"| without | {memory.without_rss / MB:.1f} MB | {memory.without_own / MB:.1f} MB |",
        f"| with | {memory.with_rss / MB:.1f} MB | {memory.with_own / MB:.1f} MB |",
        f"| **added** | {memory.added_rss / MB:.1f} MB | {memory.added_own / MB:.1f} MB |",
        "",
        "### Enrolments and renewals, at the fleet manager",
        "",
        "A real fleet manager in a process of its own, TLS, a real database; the agent's own calls from one "
        "process on the same machine, whose processor time counts against the throughput: the last column is "
        "the fleet manager's alone.",
        "",
        "| what | clients | how many | a second | median | p95 | fleet manager's processor time for each |",
        "|---|---|---|---|---|---|---|",
        *map(_row, run.rates),
    ]
    return "\n".join(lines)


def _cells(spread: Spread) -> str:
    return f"{spread.median_ms:.2f} ms | {spread.p95_ms:.2f} ms"


def _row(rate: Rate) -> str:
    cells = (
        _WHAT[rate.what], rate.clients, rate.count, f"{rate.a_second:.0f}", f"{rate.median_ms:.1f} ms",
        f"{rate.p95_ms:.1f} ms", f"{rate.server_ms:.1f} ms",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"
