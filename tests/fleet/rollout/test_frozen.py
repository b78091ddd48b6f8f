"""What is frozen when a stage begins, and when it is looked at."""

import numpy as np
import pytest

from fleet.rollout.frozen import (
    Expected,
    FrozenRing,
    due_look,
    expected_effects,
    held_metrics,
    next_look_s,
)
from fleet.rollout.gate.opening import Pool, RingPlan, open_ring
from fleet.rollout.gate.ring import Counts, Ring
from fleet.rollout.spec import StageKind, Statistics

SIZE = 400


def past(events: int, size: int = SIZE) -> Counts:
    total = np.full(size, events, dtype=np.int64)
    rates = np.random.default_rng(1).beta(2, 98, size)
    return Counts(
        {"error_rate": np.random.default_rng(2).binomial(total, rates)}, {"error_rate": total}
    )


def ring(canaries: int = 100, bake_s: float = 3600.0, tolerance: float = 1.5) -> Ring:
    ids = [f"d{number:03d}" for number in range(SIZE)]
    plan = RingPlan(
        "r1", 0, 3, 1000.0, bake_s, 10_000 * canaries // SIZE, ("error_rate", "rss"),
        {"error_rate": tolerance, "rss": 1.5},
    )  # fmt: skip
    cohort = [number < canaries for number in range(SIZE)]
    return open_ring(plan, Pool(ids, ["cam/cpu"] * SIZE, cohort), past(40_000))


def test_reads_back_to_the_same_bytes() -> None:
    frozen = FrozenRing(
        ring(), StageKind.AB, Statistics.AUTO, ("error_rate",), {"error_rate": 1.3, "x": None},
        ("cat", "dog"), np.arange(2 * SIZE).reshape(SIZE, 2), {"install": 0.1},
    )  # fmt: skip
    body = frozen.to_bytes()
    again = FrozenRing.from_bytes(body)
    assert again.to_bytes() == body
    assert (again.arm, again.roles, again.place["d007"]) == ("arm", ("", "arm"), 7)
    assert again.outputs.tolist() == frozen.outputs.tolist()
    with pytest.raises(ValueError, match="damaged"):
        FrozenRing.from_bytes(body[:-9])


@pytest.mark.parametrize(
    ("last", "after_s", "k"),
    [
        (None, 149.0, 0),
        (None, 150.0, 1),
        (None, 400.0, 5),  # the four before it were missed
        ((1, 1150.0), 209.0, 0),
        ((1, 1150.0), 210.0, 2),
        ((8, 1600.0), 605.0, 0),
        ((8, 1600.0), 659.0, 0),
        ((8, 1600.0), 660.0, 8),  # for a stage that waits for data
        ((8, 1600.0), 90_000.0, 8),
    ],
)
def test_each_look_is_due_once(last: tuple[int, float] | None, after_s: float, k: int) -> None:
    assert due_look(ring(bake_s=600.0), last, 1000.0 + after_s) == k


def test_when_the_next_look_is() -> None:
    short = ring(bake_s=600.0)
    assert next_look_s(short, None) == 1150.0
    assert next_look_s(short, (1, 1150.0)) == 1210.0
    assert next_look_s(short, (8, 1600.0)) == 1660.0
    long = ring(bake_s=36_000.0)
    assert next_look_s(long, (len(long.looks_s), 37_000.0)) == 37_600.0


def expected(of: Ring, events: int = 40_000, **changes: object) -> float | None:
    seconds = np.full(SIZE, 86_400.0)
    given = Expected(past(events), seconds, **changes)  # type: ignore[arg-type]
    return expected_effects(of, given)["error_rate"]


def test_what_a_stage_can_be_expected_to_see() -> None:
    large, small, short = expected(ring()), expected(ring(20)), expected(ring(bake_s=300.0))
    assert large is not None
    assert small is not None
    assert short is not None
    assert 1.0 < large < 1.4
    assert large < small
    assert large < short
    assert expected(ring(bake_s=60.0)) is None, "no device has its first minute by then"
    assert expected(ring(), events=0) is None
    assert expected(ring(), events=10) is None, "too few requests in the whole bake"


def test_an_arm_with_a_share_of_the_requests_sees_less() -> None:
    both = open_ring(
        RingPlan("r1", 0, 1, 0.0, 3600.0, 10_000, ("error_rate",)),
        Pool([f"d{n:03d}" for n in range(SIZE)], ["cam/cpu"] * SIZE, [True] * SIZE),
        past(40_000),
    )
    half = expected(both, paired=True, traffic=0.5)
    tenth = expected(both, paired=True, traffic=0.1)
    assert half is not None
    assert tenth is not None
    assert half < tenth


@pytest.mark.parametrize(
    ("statistics", "effect", "held"),
    [
        (Statistics.ON, None, ("error_rate", "rss")),
        (Statistics.AUTO, 1.3, ("error_rate",)),
        (Statistics.AUTO, 1.46, ()),  # too near to what is tolerated to count on
        (Statistics.AUTO, None, ()),
    ],
)
def test_what_can_hold_a_stage(
    statistics: Statistics, effect: float | None, held: tuple[str, ...]
) -> None:
    assert held_metrics(ring(), statistics, {"error_rate": effect}) == held
