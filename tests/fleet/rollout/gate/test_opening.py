"""What is frozen when a ring starts."""

import numpy as np
import pytest

from fleet.rollout.gate.blocks import POOLED, REST
from fleet.rollout.gate.opening import (
    FIXED_ABOVE,
    Pool,
    RingPlan,
    open_ring,
    placebo_seed,
    virtual_count,
)
from fleet.rollout.gate.ring import Counts, Ring
from tests.support.rings import Setting, population


def plan(**changes: object) -> RingPlan:
    values = {"rollout_id": "r1", "stage": 0, "rings": 3, "started_s": 0.0, "bake_s": 3600.0}
    values |= {"percent_bp": 1000, "metrics": ("error_rate", "rss")}
    return RingPlan(**{**values, **changes})  # type: ignore[arg-type]


def history(size: int, rng: np.random.Generator) -> Counts:
    total = rng.integers(0, 5000, size)
    return Counts(
        {"error_rate": rng.binomial(total, 0.02)},
        {"error_rate": total},
        {"rss": rng.normal(1e8, 1e6, size)},
    )


def test_the_order_in_which_devices_are_given_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    size = 60
    ids = [f"d{number}" for number in rng.permutation(size)]
    strata = [f"edge/{number % 3}" for number in range(size)]
    cohort = [number % 5 == 0 for number in range(size)]
    past = history(size, rng)
    one = open_ring(plan(), Pool(ids, strata, cohort), past)
    order = rng.permutation(size)
    pool = Pool([ids[i] for i in order], [strata[i] for i in order], [cohort[i] for i in order])
    moved = Counts(
        {name: values[order] for name, values in past.bad.items()},
        {name: values[order] for name, values in past.total.items()},
        {name: values[order] for name, values in past.level.items()},
    )
    other = open_ring(plan(), pool, moved)
    assert other.device_ids == tuple(sorted(ids))
    assert other.to_bytes() == one.to_bytes()


def test_control_is_sub_sampled_and_the_cohort_is_not() -> None:
    size = 2600
    ids = [f"d{number:05d}" for number in range(size)]
    cohort = [number < 30 for number in range(size)]
    ring = open_ring(plan(), Pool(ids, ["a"] * size, cohort), Counts())
    assert (ring.size, ring.canaries, ring.drawn_from) == (2000, 30, size)
    control = [int(name[1:]) for name in ring.device_ids[30:]]
    assert 1200 < np.mean(control) < 1430  # a random choice, not the first ones
    other = open_ring(plan(rollout_id="r2"), Pool(ids, ["a"] * size, cohort), Counts())
    assert other.device_ids != ring.device_ids


def test_the_seed_follows_from_rollout_and_ring() -> None:
    seeds = {placebo_seed("r1", 0), placebo_seed("r1", 1), placebo_seed("r2", 0)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("looks", "alpha", "canaries", "expected"),
    [
        (16, 0.01 / 3, 20, 4999),  # 4800 would do
        (30, 0.01 / 3, 20, 8999),
        (16, 0.01 / 24, 20, 38_399),
        (46, 0.01 / 80, 20, 49_999),  # bounded
        (16, 0.01 / 24, 4000, 10_000),  # bounded by memory
        (16, 0.01, FIXED_ABOVE + 1, 0),
    ],
)
def test_how_many_virtual_cohorts(looks: int, alpha: float, canaries: int, expected: int) -> None:
    assert virtual_count(looks, alpha, canaries) == expected


def test_every_look_may_drop_one_cohort_where_the_number_is_not_bounded() -> None:
    for strata in range(1, 5):
        names = tuple(f"edge/{number}" for number in range(strata))
        setting = Setting(size=400, canaries=160, strata=names, rings=3)
        ring = population(np.random.default_rng(1), setting).ring
        least = min(ring.tests.values())
        assert int(least * (ring.virtual + 1) / len(ring.looks_s) + 1e-9) >= 1


def test_strata_and_budgets() -> None:
    size = 300
    ids = [f"d{number:05d}" for number in range(size)]
    strata = ["big" if i < 150 else "other" if i < 280 else "tiny" for i in range(size)]
    ring = open_ring(plan(), Pool(ids, strata, [i % 5 == 0 for i in range(size)]), Counts())
    assert [block.name for block in ring.blocks] == ["big", "other", REST]
    assert ring.tests == {
        POOLED: pytest.approx(0.01 / 6),
        "big": pytest.approx(0.01 / 12),
        "other": pytest.approx(0.01 / 12),
    }
    assert sum(ring.tests.values()) == pytest.approx(ring.alpha_ring)


def test_a_fleet_of_one_kind_spends_everything_on_one_test() -> None:
    ring = population(np.random.default_rng(1), Setting()).ring
    assert ring.tests == {POOLED: 0.01}


def test_a_ring_is_read_back_as_it_was() -> None:
    ring = population(np.random.default_rng(1), Setting(tolerances={"error_rate": 1.25})).ring
    data = ring.to_bytes()
    again = Ring.from_bytes(data)
    assert again.to_bytes() == data
    assert again.tolerances == {"error_rate": 1.25}
    assert np.array_equal(again.baseline["error_rate"].p, ring.baseline["error_rate"].p)


def test_a_pool_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="must be as many"):
        open_ring(plan(), Pool(["a", "b"], ["x"], [True, False]), Counts())
    with pytest.raises(ValueError, match="a device id twice"):
        open_ring(plan(), Pool(["a", "a"], ["x", "x"], [True, False]), Counts())
    with pytest.raises(KeyError, match="metric 'nonsense' is not known"):
        open_ring(plan(metrics=("nonsense",)), Pool(["a"], ["x"], [True]), Counts())
