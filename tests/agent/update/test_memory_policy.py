"""Beside, unload first or not at all: the choice, from measured bytes alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.update.memory_policy import (
    MemoryLimits,
    MemorySnapshot,
    SwapMode,
    SwapPlan,
    plan_swap,
)

MIB = 1 << 20
LIMITS = MemoryLimits(reserve_bytes=64 * MIB)


def plan(available: int | None, peak: int | None, old: int | None = None, **more: int) -> SwapPlan:
    loaded = bool(more.pop("old_loaded", old is not None))
    scale = {name: value * MIB for name, value in more.items()}
    snapshot = MemorySnapshot(
        available_bytes=None if available is None else available * MIB,
        candidate_peak_bytes=None if peak is None else peak * MIB,
        candidate_size_bytes=scale.get("size", 0),
        old_bytes=None if old is None else old * MIB,
        old_loaded=loaded,
    )
    return plan_swap(snapshot, LIMITS)


@pytest.mark.parametrize(
    ("available", "peak", "old", "mode"),
    [
        (1000, 100, 100, SwapMode.BESIDE),
        (164, 100, 100, SwapMode.BESIDE),  # to the byte
        (163, 100, 100, SwapMode.UNLOAD_FIRST),
        (64, 100, 100, SwapMode.UNLOAD_FIRST),
        (63, 100, 100, SwapMode.REFUSE),  # not even in the old one's place
        (163, 100, None, SwapMode.REFUSE),  # nothing to unload
        (None, 100, 100, SwapMode.BESIDE),  # nothing to compare with: nothing is taken away
        (0, 100, 10, SwapMode.REFUSE),
    ],
)
def test_the_way_follows_from_what_fits(
    available: int | None, peak: int, old: int | None, mode: SwapMode
) -> None:
    assert plan(available, peak, old).mode is mode


def test_what_was_not_measured_is_estimated_from_the_size() -> None:
    assert plan(400, None, 10, size=100).needed_bytes == 300 * MIB
    assert plan(400, None, 10, size=100).mode is SwapMode.BESIDE
    assert plan(363, None, 10, size=100).mode is SwapMode.UNLOAD_FIRST
    assert plan(400, None, 10, size=0).needed_bytes == LIMITS.estimated_floor_bytes


def test_an_old_version_that_was_not_measured_is_unloaded_all_the_same() -> None:
    chosen = plan(100, 100, None, old_loaded=1)
    assert chosen.mode is SwapMode.UNLOAD_FIRST
    assert "was not measured" in chosen.reason


def test_the_reason_says_every_number() -> None:
    chosen = plan(100, 90, 80)
    assert chosen.reason == (
        "90.0 MiB (measured in the trial) do not fit beside what runs: 100.0 MiB are available, 64.0 MiB of them "
        "in reserve; the old version goes first and gives back 80.0 MiB"
    )
    assert chosen.measures() == {
        "swap_beside": 0.0,
        "swap_needed_bytes": 90.0 * MIB,
        "swap_reserve_bytes": 64.0 * MIB,
        "swap_available_bytes": 100.0 * MIB,
    }
    assert chosen.to_json()["mode"] == "unload_first"


sizes = st.integers(0, 1 << 40)


@given(sizes, sizes, st.none() | sizes, st.booleans())
def test_never_over_the_reserve_and_never_unloading_for_nothing(
    available: int, peak: int, old: int | None, old_loaded: bool
) -> None:
    snapshot = MemorySnapshot(available, peak, 0, old, old_loaded)
    chosen = plan_swap(snapshot, LIMITS)
    assert chosen == plan_swap(snapshot, LIMITS)
    fits = peak + LIMITS.reserve_bytes <= available
    assert (chosen.mode is SwapMode.BESIDE) == fits
    if chosen.mode is SwapMode.UNLOAD_FIRST:
        assert old_loaded
        assert old is None or peak + LIMITS.reserve_bytes <= available + old


@given(sizes, sizes, sizes, sizes)
def test_more_memory_never_makes_it_worse(available: int, more: int, peak: int, old: int) -> None:
    order = [SwapMode.REFUSE, SwapMode.UNLOAD_FIRST, SwapMode.BESIDE]
    less = plan_swap(MemorySnapshot(available, peak, 0, old, True), LIMITS)
    better = plan_swap(MemorySnapshot(available + more, peak, 0, old, True), LIMITS)
    assert order.index(better.mode) >= order.index(less.mode)
