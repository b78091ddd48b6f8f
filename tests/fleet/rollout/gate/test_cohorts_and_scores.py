"""Virtual cohorts are random subsets, the same everywhere; sums of scores are exact."""

import hashlib
from collections import Counter
from itertools import combinations
from statistics import NormalDist

import numpy as np
import pytest

from fleet.rollout.gate.cohorts import block_sums, virtual_cohorts
from fleet.rollout.gate.metrics import Kind, Metric, metric_of
from fleet.rollout.gate.ring import Baseline, Counts, Ring
from fleet.rollout.gate.scores import QUANTUM, rank_normal, scored
from tests.support.rings import Setting, population, swapped


def small(size: int = 6, canaries: int = 2, **changes: object) -> Ring:
    setting = Setting(size=size, canaries=canaries, **changes)  # type: ignore[arg-type]
    return population(np.random.default_rng(3), setting).ring


def test_every_subset_is_equally_likely() -> None:
    ring = small()
    (draws,) = virtual_cohorts(ring)
    seen = Counter(tuple(sorted(row)) for row in draws.chosen.tolist())
    assert set(seen) == set(combinations(range(6), 2))
    expected = ring.virtual / 15
    chi2 = sum((count - expected) ** 2 / expected for count in seen.values())
    assert chi2 < 36.1  # 14 degrees of freedom: 1 in 1,000, and the seed is fixed


def test_a_cohort_has_no_device_twice_and_the_size_of_the_real_one() -> None:
    for canaries in (1, 7, 50, 93):
        ring = small(100, canaries)
        (draws,) = virtual_cohorts(ring)
        rows = np.sort(draws.chosen, axis=1)
        assert rows.shape == (ring.virtual, min(canaries, 100 - canaries))
        assert draws.complement == (canaries > 50)
        assert np.all(rows[:, 1:] > rows[:, :-1])
        assert rows.min() >= 0
        assert rows.max() < 100


def test_the_draw_of_a_ring_never_changes() -> None:
    """Decisions of the past are recomputed from the seed: if this fails, audits of old rollouts do."""
    (draws,) = virtual_cohorts(small(100, 7))
    digest = hashlib.sha256(draws.chosen.astype("<i4").tobytes()).hexdigest()
    assert digest == "be0473472d4c39fe2dd0f39d283b97cbd0ed5e5e19421a9c206378d4ca3a677d"


def test_cohorts_are_drawn_inside_each_stratum() -> None:
    ring = small(120, 60, strata=("a", "b", "c"))
    for block, draws in zip(ring.blocks, virtual_cohorts(ring), strict=True):
        size = len(block.members)
        chosen = size - draws.chosen.shape[1] if draws.complement else draws.chosen.shape[1]
        assert chosen == block.canaries
    assert sum(block.canaries for block in ring.blocks) == 60


@pytest.mark.parametrize("canaries", [5, 33])
def test_sums_are_those_of_each_cohort(canaries: int) -> None:
    ring = small(40, canaries)
    rng = np.random.default_rng(5)
    score, has = rng.integers(-(2**25), 2**25, 40), rng.random(40) < 0.7
    ((sums,),) = block_sums(ring, [(score, has)])
    (draws,) = virtual_cohorts(ring)
    everyone = set(range(40))
    for row in (0, 1, 17, ring.virtual - 1):
        listed = set(draws.chosen[row].tolist())
        cohort = sorted(everyone - listed if draws.complement else listed)
        assert sums.score[row + 1] == score[cohort][has[cohort]].sum()
        assert sums.devices[row + 1] == has[cohort].sum()
    assert sums.score[0] == score[ring.cohort & has].sum()
    assert sums.all_score == score[has].sum()
    other = block_sums(swapped(ring), [(score, has)])[0][0]
    assert other.score[0] == sums.all_score - sums.score[0]


def test_rates_are_scored_against_each_devices_own() -> None:
    base = Baseline(np.array([0.01, 0.1, 0.01]), 0.04, 100.0, 3)
    counts = Counts({"error_rate": np.array([2, 20, 1])}, {"error_rate": np.array([100, 100, 19])})
    found = scored(metric_of("error_rate"), base, counts)
    assert found is not None
    assert found.has.tolist() == [True, True, False]  # 19 events are too few
    assert found.score[:2].tolist() == [round(np.log(3.0) * QUANTUM)] * 2
    assert found.score[2] == 0


def test_levels_are_ranked_by_their_change() -> None:
    base = Baseline(np.array([10.0, 20.0, 30.0, 40.0]), 25.0, 0.0, 4)
    counts = Counts(level={"rss": np.array([11.0, 25.0, 30.0, np.nan])})
    found = scored(metric_of("rss"), base, counts)
    assert found is not None
    wanted = [NormalDist().inv_cdf(share) for share in (3 / 6, 5 / 6, 1 / 6)]
    assert (found.score[:3] / QUANTUM).tolist() == pytest.approx(wanted, abs=1e-6)
    assert not found.has[3]


def test_a_metric_of_which_less_is_worse_has_its_sign_turned() -> None:
    base = Baseline(np.array([0.5, 0.5]), 0.5, 1.0, 2)
    counts = Counts({"x": np.array([10, 50])}, {"x": np.array([100, 100])})
    found = scored(Metric("x", "", Kind.RATE, "lower"), base, counts)
    assert found is not None
    assert found.score[0] > found.score[1]


@pytest.mark.parametrize(
    "counts",
    [
        Counts(),
        Counts({"error_rate": np.zeros(2, dtype=np.int64)}, {"error_rate": np.array([0, 5])}),
    ],
)
def test_a_metric_without_data_has_no_scores(counts: Counts) -> None:
    assert scored(metric_of("error_rate"), Baseline(np.ones(2), 1.0, 1.0, 0), counts) is None
    assert scored(metric_of("rss"), Baseline(np.ones(2), 1.0, 0.0, 0), counts) is None


def test_ties_share_their_mean_rank() -> None:
    found = rank_normal(np.array([1.0, 5.0, 5.0, 9.0]))
    assert found[1] == found[2] == pytest.approx(0.0)
    assert found[0] == pytest.approx(-found[3])
