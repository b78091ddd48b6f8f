"""The decisions of the REST front end, without a server: where a request runs, what a body may hold."""

import time
from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from typing import Any

import pytest

from agent.runtime.errors import InputContractError
from agent.serving.errors import OverloadError, WireError
from agent.serving.placement import Company, Placement, PlacementLimits
from agent.serving.rest.body import Body, BodyLimits, read_body
from agent.serving.values import numbers

KEY = ("scale", "")
LIMITS = PlacementLimits(fast_s=0.001, slow_s=0.010, forgiven=2.0, recovery=0.5, versions=2)


def test_what_was_never_fast_runs_in_the_pool() -> None:
    placement = Placement(LIMITS)
    assert not placement.inline("scale", "", 100)
    placement.record(KEY, "a", 100, 0.002, inline=False)
    assert not placement.inline("scale", "", 100)
    placement.record(KEY, "a", 100, 0.001, inline=False)
    assert placement.inline("scale", "", 100)
    assert not placement.inline("scale", "", 101), "a larger request may take longer"
    assert not placement.inline("scale", "1", 100), "another version may be asked for by name"


def test_what_holds_up_the_loop_goes_back_to_the_pool() -> None:
    placement = Placement(LIMITS)
    placement.record(KEY, "a", 100, 0.001, inline=False)
    for _ in range(2):
        placement.record(KEY, "a", 100, 0.010, inline=True)
        assert placement.inline("scale", "", 100), "some requests are slower than others"
    placement.record(KEY, "a", 100, 0.010, inline=True)
    assert not placement.inline("scale", "", 100)
    for _ in range(2):
        placement.record(KEY, "a", 100, 0.001, inline=False)
    assert placement.inline("scale", "", 100)
    placement.record(KEY, "a", 100, 1.0, inline=True)
    assert not placement.inline("scale", "", 100), "once for long is enough"


def test_a_swap_measures_anew_and_old_measurements_are_forgotten() -> None:
    placement = Placement(LIMITS)
    placement.record(KEY, "a", 100, 0.001, inline=False)
    placement.record(KEY, "b", 100, 0.002, inline=True)
    assert not placement.inline("scale", "", 100)
    for name in ("one", "two", "three"):
        placement.record((name, ""), "c", 100, 0.001, inline=False)
    assert [placement.inline(name, "", 100) for name in ("one", "two", "three")] == [
        False,
        True,
        True,
    ]


def test_of_two_versions_that_take_turns_both_must_be_fast_until_one_stays_away() -> None:
    placement = Placement(replace(LIMITS, turns=3))
    for servable, inline in (("a", False), ("b", True), ("a", True)):
        placement.record(KEY, servable, 100, 0.001, inline=inline)
        assert placement.inline("scale", "", 100)
    placement.record(KEY, "b", 100, 1.0, inline=True)
    assert not placement.inline("scale", "", 100)
    for _ in range(3):
        placement.record(KEY, "a", 100, 0.001, inline=False)
        assert not placement.inline("scale", "", 100), "b may answer the next one"
    placement.record(KEY, "a", 100, 0.001, inline=False)
    assert placement.inline("scale", "", 100)


def test_what_seems_slow_on_the_loop_is_measured_exactly_before_it_counts() -> None:
    placement = Placement(PlacementLimits(fast_s=0.001, slow_s=0.010, forgiven=0.5, doubted_runs=2))
    placement.record(KEY, "a", 100, 0.001, inline=False)
    assert placement.clock(KEY) is time.perf_counter
    placement.record_inline(KEY, "a", 100, 5.0)
    assert placement.inline("scale", "", 100), "it may have been the machine"
    assert placement.clock(KEY) is time.thread_time
    placement.record_inline(KEY, "a", 100, 0.001)
    assert placement.clock(KEY) is time.thread_time
    placement.record_inline(KEY, "a", 100, 5.0)
    assert not placement.inline("scale", "", 100), "it was the model"
    assert placement.clock(KEY) is time.perf_counter


def test_what_is_not_slow_runs_inline_for_a_client_that_asks_alone() -> None:
    placement = Placement(LIMITS)
    placement.record(KEY, "a", 100, 0.009, inline=False)
    assert not placement.inline("scale", "", 100)
    assert placement.inline("scale", "", 100, alone=True)
    assert not placement.inline("scale", "", 101, alone=True)
    placement.record(KEY, "a", 200, 0.010, inline=False)
    assert not placement.inline("scale", "", 200, alone=True), "that is slow"
    placement.record(KEY, "a", 100, 1.0, inline=True)
    assert not placement.inline("scale", "", 100, alone=True), "it held up the loop"


def test_a_client_is_alone_after_a_row_of_questions_with_nobody_between() -> None:
    company = Company(PlacementLimits(alone_row=3))
    assert [company.alone(1, 0) for _ in range(5)] == [False, False, False, True, True]
    assert not company.alone(1, 1), "another question is under way"
    assert [company.alone(1, 0) for _ in range(3)] == [False, False, True]
    assert not company.alone(2, 0), "somebody else asks"
    assert not company.alone(1, 0)
    turns = [company.alone(client, 0) for client in (1, 2) * 20]
    assert not any(turns), "two clients that take turns are company"


def receiving(*chunks: bytes, gone: bool = False) -> Any:
    def messages() -> Iterator[MutableMapping[str, Any]]:
        for i, chunk in enumerate(chunks):
            more = gone or i + 1 < len(chunks)
            yield {"type": "http.request", "body": chunk, "more_body": more}
        yield {"type": "http.disconnect"}

    left = messages()

    async def receive() -> MutableMapping[str, Any]:
        return next(left)

    return receive


async def test_all_bodies_together_are_bounded() -> None:
    bodies = Body(BodyLimits(max_bytes=8, max_bytes_together=10))
    body, held = await read_body([], receiving(b"abc", b"def"), bodies)
    assert (body, held) == (b"abcdef", 6)
    with pytest.raises(OverloadError, match="hold 6 bytes, 5 more do not fit"):
        await read_body([], receiving(b"12345"), bodies)
    with pytest.raises(WireError, match="larger than the 8 bytes"):
        await read_body([], receiving(b"1", b"2" * 8), bodies)
    with pytest.raises(WireError, match="gone away"):
        await read_body([], receiving(b"1", gone=True), bodies)
    bodies.give_back(held)
    _, held = await read_body([], receiving(b"12345678"), bodies)
    assert held == 8, "what was refused held nothing back"


async def test_a_caller_that_stops_sending_is_given_up() -> None:
    bodies = Body(BodyLimits(max_wait_s=0.0))

    async def never() -> MutableMapping[str, Any]:
        raise TimeoutError

    with pytest.raises(WireError, match="did not come") as given_up:
        await read_body([], never, bodies)
    assert given_up.value.status == 408


@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [
        (127, "INT8", True),
        (128, "INT8", False),
        (-1, "UINT8", False),
        (2**64 - 1, "UINT64", True),
        (2**64, "UINT64", False),
        (-(2**63) - 1, "INT64", False),
        (1.0, "INT32", False),
        (True, "INT32", False),
        (1, "BOOL", False),
        (True, "BOOL", True),
        (65504, "FP16", True),
        (65520, "FP16", False),
        (float("inf"), "FP16", True),
        (2**64, "FP64", True),
        (10**400, "FP64", False),
        ("1", "FP64", False),
    ],
)
def test_a_value_fits_its_data_type_or_is_refused(value: Any, dtype: str, fits: bool) -> None:
    if fits:
        assert numbers([value], dtype, [1], "x")[0] == value
        return
    with pytest.raises(InputContractError, match=f"'x'.* {dtype}"):
        numbers([value], dtype, [1], "x")
