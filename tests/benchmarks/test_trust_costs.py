"""What trust costs: everything measured once with a few of each, and the section that is made of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.trust_costs import decisions, enrolments, memory
from benchmarks.trust_costs.decisions import STEPS, Decisions, Spread
from benchmarks.trust_costs.enrolments import Rate
from benchmarks.trust_costs.memory import Memory
from benchmarks.trust_costs.report import Run, markdown

MS = Spread(1.0, 2.0)
RUN = Run(
    "a machine",
    Decisions(400, 1092, dict.fromkeys(STEPS, MS), Spread(5.1234, 6.0), 4.7, MS, MS),
    Memory(59_000_000, 65_400_000, 33_000_000, 37_800_000),
    (Rate("enrol", 8, 400, 154.6, 48.61, 61.7, 6.24), Rate("renew", 1, 400, 81.2, 11.9, 16.4, 8.5)),
    (0.5, 1.6),
)


def test_every_step_of_a_decision_is_measured(tmp_path: Path) -> None:
    found = decisions.measure(3, tmp_path)
    assert found.packs == 3
    assert set(found.steps) == set(STEPS)
    assert all(0 < one.median_ms <= found.whole.p95_ms for one in found.steps.values())
    assert found.peer.median_ms > 0
    assert found.processor_ms > 0
    assert 500 < found.pack_bytes < 2_000


def test_trust_takes_memory_that_is_measured(tmp_path: Path) -> None:
    """The TUF client and SQLite's pages are a few megabytes; nothing would mean that it was there without, too."""
    found = memory.measure(tmp_path, rounds=1)
    assert 1_000_000 < found.added_rss < 40_000_000
    assert found.without_own < found.without_rss


def test_enrolments_and_renewals_by_one_and_by_two(tmp_path: Path) -> None:
    rates = enrolments.measure(4, 4, tmp_path, clients=(1, 2))
    assert [(one.what, one.clients, one.count) for one in rates] == [
        ("enrol", 1, 4), ("enrol", 2, 4), ("renew", 1, 4), ("renew", 2, 4),
    ]  # fmt: skip
    assert all(one.a_second > 0 and one.median_ms > 0 for one in rates)


def test_the_section_says_what_was_measured() -> None:
    text = markdown(RUN)
    assert "| **together** | 4.7 ms of them processor time | 5.12 ms | 6.00 ms |" in text
    assert "| **added** | 6.4 MB | 4.8 MB |" in text
    assert "| 8 | 400 | 155 | 48.6 ms | 61.7 ms | 6.2 ms |" in text
    assert all(f"| {step} |" in text for step in STEPS)
    with pytest.raises(KeyError):
        markdown(replace(RUN, rates=(replace(RUN.rates[0], what="revoke"),)))
