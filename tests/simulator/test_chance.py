"""Draws that can be repeated."""

import random
from collections import Counter

import pytest

from simulator.chance import binomial, chance, one_of, rng


def test_the_same_question_has_the_same_answer_and_others_do_not():
    assert chance(1, "sim-1", "crash") == chance(1, "sim-1", "crash")
    answers = {chance(seed, dev) for seed in range(10) for dev in ("a", "b", "ab")}
    assert len(answers) == 30
    assert chance(1, "ab", "c") != chance(1, "a", "bc")


def test_chance_is_spread_evenly():
    below = sum(chance(3, f"sim-{number}") < 0.3 for number in range(5000))
    assert 1300 < below < 1700


def test_one_of_deals_out_every_item():
    dealt = Counter(one_of(("a", "b", "c"), 1, f"sim-{number}") for number in range(3000))
    assert min(dealt.values()) > 850


@pytest.mark.parametrize(("count", "rate"), [(100, 0.03), (40, 0.5), (100, 0.9), (100_000, 0.01)])
def test_binomial_has_the_right_mean_and_spread(count, rate):
    draw = random.Random(5)
    drawn = [binomial(draw, count, rate) for _ in range(3000)]
    mean = sum(drawn) / len(drawn)
    variance = sum((value - mean) ** 2 for value in drawn) / len(drawn)
    assert mean == pytest.approx(count * rate, rel=0.04)
    assert variance == pytest.approx(count * rate * (1 - rate), rel=0.12)
    assert all(0 <= value <= count for value in drawn)


def test_binomial_at_its_edges():
    draw = rng(1, "x")
    assert binomial(draw, 0, 0.5) == 0
    assert binomial(draw, 10, 0.0) == 0
    assert binomial(draw, 10, 1.0) == 10
    assert binomial(draw, -3, 0.5) == 0
