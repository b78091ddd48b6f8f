"""What the page of results says about a run of swaps."""

from typing import Any

import pytest

from benchmarks.swap_window import Active, Sample, section, wrong_versions

RUN: dict[str, Any] = {
    "transport": "grpc and http",
    "swaps": 100,
    "trials": True,
    "seconds_per_swap": 1.0,
    "requests_per_s_offered": 139,
    "steady": {"p50_ms": 9.5, "p99_ms": 20.0},
    "swapping": {"p50_ms": 13.8, "p99_ms": 30.0},
    "p99_ratio": 1.5,
    "requests": 14155,
    "failed": 0,
    "wrong_version": 2,
    "server_rss_mb": 100.1,
    "server_peak_rss_mb": 116.5,
    "trial_peak_rss_mb": 85.6,
}


@pytest.mark.parametrize(("ratio", "verdict"), [(1.5, "1.5 is met."), (1.51, "**missed**.")])
def test_the_section_says_whether_the_goal_is_met(ratio: float, verdict: str) -> None:
    text = section(RUN | {"p99_ratio": ratio}, 12.0)
    assert text.endswith(verdict)
    assert "`python -m benchmarks.swap_window --swaps 100 --steady-s 12 --publish`" in text
    assert "| p99 ms | 20.0 | 30.0 |" in text
    assert "14,155 requests, 0 failed, 2 answered by a version" in text


def test_a_run_without_trials_says_so() -> None:
    text = section(RUN | {"trials": False, "trial_peak_rss_mb": 0.0}, 5.0)
    assert text.startswith("## Many swaps under load")
    assert "--swaps 100 --steady-s 5 --no-trials --publish`" in text
    assert "1.0 s each, without trials)" in text
    assert "116.5 at its peak. p99" in text


def test_an_answer_of_a_version_that_was_not_active_any_more_is_wrong() -> None:
    active = [Active(0, 0, "1"), Active(10, 11, "2")]
    good = [Sample(5, 1, "1"), Sample(10.5, 1, "1"), Sample(9.9, 200, "2"), Sample(12, 1, "2")]
    late = Sample(11.5, 1, "1")
    early = Sample(5, 1, "2")
    assert wrong_versions([*good, late, early, Sample(12, 1, "")], active) == [late, early]
