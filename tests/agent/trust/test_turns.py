"""Whose turn it is: tables of the rules, and what must hold for every ramp and every span."""

import calendar
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.trust import (
    DeviceFacts,
    Directive,
    excluded,
    is_open,
    is_stopped,
    selects,
    share_now_bp,
    stratum_of,
)

START_S = 1_800_000_000
FACTS = DeviceFacts("cam-1", "cam", "aarch64", {"site": "north"}, execution_provider="cuda")


def directive(**changes: Any) -> Directive:
    values: dict[str, Any] = {
        "id": "r1",
        "number": 1,
        "model": "m",
        "bundle": "bundles/cam/m-1",
        "sha256": "a" * 64,
        "length": 1,
        "percent_bp": 8000,
        "stage_started_s": START_S,
    }
    return Directive(**{**values, **changes})


def at(day: int, hour: int, minute: int = 0) -> float:
    """Seconds since the epoch in the week of Monday, 6 July 2026; day 0 is that Monday, in UTC."""
    return float(calendar.timegm((2026, 7, 6 + day, hour, minute, 0)))


@pytest.mark.parametrize(
    ("ramp_s", "doublings", "from_bp", "gone_s", "expected"),
    [
        (0, 0, 0, 0, 8000),
        (0, 0, 5000, -100, 8000),
        (100, 0, 0, 0, 0),
        (100, 0, 0, 25, 2000),
        (100, 0, 1000, 50, 4500),
        (100, 0, 1000, 99.999, 7999),
        (100, 0, 1000, 100, 8000),
        (100, 0, 1000, 1e9, 8000),
        (100, 0, 1000, -50, 1000),  # a clock that is behind: nobody more
        (300, 3, 1000, 100, 2000),  # each third adds twice as much: 1000, 2000, 4000
        (300, 3, 1000, 200, 4000),
        (300, 3, 1000, 300, 8000),
        (300, 0, 9000, 0, 8000),  # a share that shrank is not ramped
    ],
)
def test_share_grows_from_the_last_stages_to_this_ones(
    ramp_s: int, doublings: int, from_bp: int, gone_s: float, expected: int
) -> None:
    ramp = directive(ramp_s=ramp_s, ramp_doublings=doublings, from_bp=from_bp)
    assert share_now_bp(ramp, START_S + gone_s) in {expected, expected - (doublings > 0)}


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.integers(0, 10**6),
    st.integers(0, 20),
    st.floats(-1e6, 2e6),
    st.floats(0, 1e6),
)
def test_a_ramp_never_shrinks_and_stays_between_its_ends(
    from_bp: int, percent_bp: int, ramp_s: int, doublings: int, gone_s: float, later_s: float
) -> None:
    ramp = directive(
        from_bp=from_bp, percent_bp=percent_bp, ramp_s=ramp_s, ramp_doublings=doublings
    )
    now, later = (share_now_bp(ramp, START_S + s) for s in (gone_s, gone_s + later_s))
    assert min(from_bp, percent_bp) <= now <= later <= percent_bp
    assert share_now_bp(ramp, START_S + ramp_s) == percent_bp


@pytest.mark.parametrize(
    ("spans", "now_s", "offset", "expected"),
    [
        ((), at(0, 12), 0, True),
        (("01:00-05:00",), at(0, 1), 0, True),
        (("01:00-05:00",), at(0, 0, 59), 0, False),
        (("01:00-05:00",), at(0, 4, 59), 0, True),
        (("01:00-05:00",), at(0, 5), 0, False),
        (("01:00-05:00",), at(0, 5), -60, True),  # 04:00 where the device is
        (("01:00-05:00",), at(0, 23), 330, True),  # 04:30 on the next day in India
        (("22:00-04:00",), at(2, 23), 0, True),
        (("22:00-04:00",), at(2, 3, 59), 0, True),
        (("22:00-04:00",), at(2, 12), 0, False),
        (("mon-fri 22:00-04:00",), at(5, 3), 0, True),  # begun on Friday
        (("mon-fri 22:00-04:00",), at(5, 22), 0, False),
        (("mon-fri 22:00-04:00",), at(0, 3), 0, False),  # would have begun on Sunday
        (("sun 22:00-04:00",), at(0, 3), 0, True),
        (("sat-mon 10:00-11:00",), at(6, 10), 0, True),
        (("sat-mon 10:00-11:00",), at(0, 10), 0, True),
        (("sat-mon 10:00-11:00",), at(1, 10), 0, False),
        (("sat 00:00-00:00",), at(5, 23, 59), 0, True),
        (("sat 00:00-00:00",), at(6, 0), 0, False),
        (("sat 10:00-11:00", "tue 10:00-11:00"), at(1, 10, 30), 0, True),
        (("sat 10:00-11:00", "tue 10:00-11:00"), at(2, 10, 30), 0, False),
    ],
)
def test_open_hours(spans: tuple[str, ...], now_s: float, offset: int, expected: bool) -> None:
    assert is_open(spans, now_s, offset) is expected


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 10**7), st.integers(-840, 840))
def test_a_span_and_its_complement_divide_the_day(
    start: int, end: int, minute: int, offset: int
) -> None:
    if start == end:
        return
    one, other = (
        f"{a // 60:02}:{a % 60:02}-{b // 60:02}:{b % 60:02}"
        for a, b in ((start, end), (end, start))
    )
    now_s = minute * 60.0
    assert is_open((one,), now_s, offset) is not is_open((other,), now_s, offset)


def test_hours_that_are_none_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"open hours '25:00-26:00' are not of the form"):
        is_open(("25:00-26:00",), 0.0, 0)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ((), None),
        ((("site", "south"),), None),
        ((("site", "south"), ("site", "north")), ("site", "north")),
        ((("class", "cam"),), ("class", "cam")),
        ((("hardware", "aarch64"),), ("hardware", "aarch64")),
        ((("id", "cam-1"),), ("id", "cam-1")),
        ((("id", "cam-2"), ("owner", "")), None),
    ],
)
def test_one_label_is_enough_to_be_left_out(
    pairs: tuple[tuple[str, str], ...], expected: tuple[str, str] | None
) -> None:
    assert excluded(pairs, FACTS) == expected


def test_a_selector_needs_all_and_an_exclusion_one() -> None:
    pairs = (("site", "north"), ("id", "cam-2"))
    assert not selects(pairs, FACTS)
    assert excluded(pairs, FACTS) == ("site", "north")


def test_strata_are_class_and_provider() -> None:
    assert stratum_of(FACTS) == "cam/cuda"
    assert stratum_of(replace(FACTS, execution_provider="")) == "cam/cpu"
    assert is_stopped(directive(stopped=("cam/cpu", "cam/cuda")), FACTS)
    assert not is_stopped(directive(stopped=("cam/cpu",)), FACTS)


def test_doublings_add_twice_as_much_each_time() -> None:
    ramp = directive(from_bp=0, percent_bp=10_000, ramp_s=400, ramp_doublings=4)
    shares = [share_now_bp(ramp, START_S + s) for s in (0, 100, 200, 300, 400)]
    steps = [b - a for a, b in itertools.pairwise(shares)]
    assert all(math.isclose(b, 2 * a, abs_tol=3) for a, b in itertools.pairwise(steps))
