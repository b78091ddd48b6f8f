"""Who virtual devices are: Beta rates with the correlation asked for, and moods that last."""

import numpy as np
import pytest

from simulator.virtual.characters import EPOCH_S, Moods, beta_rates, draw_characters, generator
from simulator.virtual.settings import Population

MANY = 20_000


@pytest.mark.parametrize(("mean", "rho"), [(0.02, 0.02), (0.2, 0.1), (0.5, 0.001)])
def test_rates_have_the_mean_and_the_correlation_asked_for(mean, rho):
    rates = beta_rates(generator(1, "test"), mean, rho, MANY)
    assert rates.mean() == pytest.approx(mean, rel=0.05)
    # Two requests of one device correlate with Var(rate) / (mean (1 - mean)).
    assert rates.var() / (mean * (1 - mean)) == pytest.approx(rho, rel=0.1)


@pytest.mark.parametrize(("mean", "rho"), [(0.0, 0.02), (1.0, 0.02), (0.3, 0.0)])
def test_rates_that_do_not_vary(mean, rho):
    assert set(beta_rates(generator(1, "test"), mean, rho, 5)) == {mean}


def test_kinds_are_dealt_by_their_shares():
    population = Population(kinds={"edge/cpu": 0.75, "edge/gpu": 0.25}, broken_rate=0.1)
    own = draw_characters(population, MANY, 3)
    assert own.kind_names == ("edge/cpu", "edge/gpu")
    assert (own.kind == 1).mean() == pytest.approx(0.25, abs=0.02)
    assert own.broken.mean() == pytest.approx(0.1, abs=0.01)


def test_a_mood_lasts_and_passes_and_changes_no_mean():
    moods = Moods(Population(wander=0.5, wander_s=1800), MANY, 4)
    everyone = np.arange(MANY)
    first, soon, late = (
        np.log(moods.factors(everyone, np.full(MANY, at_s))) for at_s in (0.0, EPOCH_S, 14_400.0)
    )
    assert np.exp(first).mean() == pytest.approx(1.0, abs=0.03)
    assert first.std() == pytest.approx(0.5, rel=0.05)
    assert np.corrcoef(first, soon)[0, 1] == pytest.approx(np.exp(-EPOCH_S / 1800), abs=0.02)
    assert abs(np.corrcoef(first, late)[0, 1]) < 0.05


def test_an_even_temper_costs_nothing():
    moods = Moods(Population(), 3, 4)
    assert moods.factors(np.arange(3), np.zeros(3)) == 1.0
    assert list(moods.past) == [1.0, 1.0, 1.0]
