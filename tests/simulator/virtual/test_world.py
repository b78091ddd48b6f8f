"""Virtual worlds: every window once, swaps where they happen, and effects only where they belong."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.virtual import (
    Candidate,
    Incident,
    Outcome,
    Population,
    Setting,
    VirtualWorld,
    Windows,
)

COUNT = 400
HALF = np.arange(COUNT // 2)
ALIKE = Population(  # no two devices differ, so that a factor can be read off the arms
    error_rho=0.0, slow_rate=0.02, slow_rho=0.0, feedback_share=0.3, wrong_rho=0.0
)


def updated(setting: Setting, until_s: float = 1200.0, seed: int = 1) -> Windows:
    """The windows after the first minute of a world in which half of the devices got the candidate."""
    world = VirtualWorld(setting, COUNT, seed)
    world.deploy(HALF)
    world.advance(60.0)
    return world.advance(until_s)[0]


def rates(windows: Windows, metric: str) -> tuple[float, float]:
    """The rate of the windows of the old and of the new bundle."""
    bad, total = windows.rate(metric)
    old, new = ~windows.candidate, windows.candidate
    return float(bad[old].sum() / total[old].sum()), float(bad[new].sum() / total[new].sum())


@settings(max_examples=25, deadline=None)
@given(
    looks=st.lists(st.floats(1.0, 200.0), min_size=1, max_size=6),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**20),
)
def test_windows_of_a_device_follow_each_other_without_gap_or_overlap(looks, share, seed):
    candidate = Candidate(install_s=40.0, refused_rate=0.2, reverted_rate=0.3, reverted_s=20.0)
    world = VirtualWorld(Setting(candidate=candidate), 30, seed)
    world.deploy(np.arange(15))
    parts, moves, now_s = [], [], 0.0
    for look_s in looks:
        world.set_pace(np.random.default_rng(seed).random(30) < share)
        now_s += look_s
        windows, events = world.advance(now_s)
        parts.append(windows)
        moves += [(int(d), float(at)) for d, at in zip(events.device, events.at_s, strict=True)]
        assert (windows.arrived_s <= now_s).all()
    parts.append(world.advance(now_s + 1.0)[0])  # what was under way
    made = Windows.joined(parts)
    for device in range(30):
        own = made.rows(made.device == device)
        assert np.allclose(own.start_s[1:], own.end_s[:-1])
        assert (own.end_s > own.start_s).all()
        assert (own.end_s - own.start_s <= 60.0 + 1e-6).all()
        switches = own.start_s[1:][own.candidate[1:] != own.candidate[:-1]]
        steps = [at for who, at in moves if who == device]
        assert all(any(abs(at - step) < 1e-6 for step in steps) for at in switches)


def test_the_same_seed_is_the_same_world_and_another_one_is_not():
    setting = Setting(population=Population(wander=0.3, late_rate=0.1, lost_rate=0.1))
    one, same, other = updated(setting), updated(setting), updated(setting, seed=2)
    for column in ("device", "start_s", "arrived_s", "requests", "failures"):
        assert np.array_equal(getattr(one, column), getattr(same, column))
    assert not np.array_equal(one.failures[:100], other.failures[:100])


def test_a_candidate_does_not_change_who_the_devices_are():
    plain = VirtualWorld(Setting(), COUNT, 7)
    bad = VirtualWorld(Setting(candidate=Candidate(error_factor=9.0)), COUNT, 7)
    assert np.array_equal(plain.characters.error, bad.characters.error)
    assert np.array_equal(plain.history().bad["error_rate"], bad.history().bad["error_rate"])


def test_devices_in_comparison_report_four_times_as_often():
    world = VirtualWorld(Setting(), COUNT, 1)
    world.set_pace(np.arange(COUNT) < 100)
    windows, _ = world.advance(3600.0)
    fast = windows.device < 100
    assert np.bincount(windows.device).min() >= 59
    assert fast.sum() / 100 == pytest.approx(240, abs=2)
    assert (~fast).sum() / 300 == pytest.approx(60, abs=1)
    assert windows.requests[fast].sum() / 100 == pytest.approx(1800, rel=0.02)


@pytest.mark.parametrize(
    ("candidate", "population", "metric", "factor"),
    [
        (Candidate(error_factor=2.0), ALIKE, "error_rate", 2.0),
        (Candidate(error_factor=1.5), ALIKE, "error_rate", 1.5),
        (Candidate(slow_factor=3.0), ALIKE, "over_latency_rate", 3.0),
        (Candidate(wrong_factor=4.0), ALIKE, "feedback_error_rate", 4.0),
        (Candidate(), ALIKE, "error_rate", 1.0),
    ],
)
def test_effects_of_a_candidate(candidate, population, metric, factor):
    windows = updated(Setting(population=population, candidate=candidate), 3600.0)
    old, new = rates(windows, metric)
    assert new / old == pytest.approx(factor, rel=0.06)
    if metric != "error_rate":
        old, new = rates(windows, "error_rate")
        assert new / old == pytest.approx(1.0, rel=0.06)


def test_total_failure_and_slowness_from_nothing():
    windows = updated(Setting(candidate=Candidate(error_floor=1.0, slow_floor=0.5)))
    assert rates(windows, "error_rate")[1] == 1.0
    assert rates(windows, "over_latency_rate") == pytest.approx((0.0, 0.5), abs=0.01)


def test_an_effect_on_one_kind_of_device_only():
    population = Population(kinds={"edge/cpu": 0.5, "edge/gpu": 0.5})
    setting = Setting(population, Candidate(error_floor=1.0, only_kind="edge/gpu"))
    world = VirtualWorld(setting, COUNT, 1)
    world.deploy(np.arange(COUNT))
    world.advance(120.0)
    windows, _ = world.advance(600.0)
    gpu = world.characters.kind[windows.device] == 1
    assert (windows.failures[gpu] == windows.requests[gpu]).all()
    assert windows.failures[~gpu].sum() / windows.requests[~gpu].sum() < 0.05


def test_an_incident_befalls_both_arms_while_it_lasts():
    incident = Incident(
        start_s=600.0, duration_s=300.0, error_factor=5.0, slow_factor=4.0, load_factor=2.0
    )
    setting = Setting(population=Population(slow_rate=0.02), incident=incident)
    windows = updated(setting, 1800.0)
    within = (windows.start_s >= 600.0) & (windows.end_s <= 900.0)
    outside = (windows.end_s <= 600.0) | (windows.start_s >= 900.0)
    for metric, factor in (("error_rate", 5.0), ("over_latency_rate", 4.0)):
        for usual, hit in zip(
            rates(windows.rows(outside), metric), rates(windows.rows(within), metric), strict=True
        ):
            assert hit / usual == pytest.approx(factor, rel=0.25)
    load = windows.requests / (windows.end_s - windows.start_s)
    assert load[within].mean() / load[outside].mean() == pytest.approx(2.0, rel=0.05)


def test_broken_devices_fail_everything_with_either_bundle():
    world = VirtualWorld(Setting(population=Population(broken_rate=0.2)), COUNT, 1)
    broken = world.characters.broken
    world.deploy(HALF)
    windows, _ = world.advance(900.0)
    assert (windows.failures == windows.requests)[broken[windows.device]].all()
    assert not (windows.failures == windows.requests)[~broken[windows.device]].all()
    assert np.array_equal((world.history().bad["error_rate"] > 10_000), broken)


def test_load_swings_over_the_day():
    world = VirtualWorld(Setting(population=Population(diurnal=0.5)), COUNT, 1)
    windows, _ = world.advance(86_400.0)
    day, night = windows.end_s < 43_200, windows.start_s > 43_200
    # The mean of a half sine is 2/pi of its height.
    swing = windows.requests[day].sum() / windows.requests[night].sum()
    assert swing == pytest.approx((1 + 0.5 * 2 / np.pi) / (1 - 0.5 * 2 / np.pi), rel=0.02)


def test_reports_are_late_or_lost_and_never_twice():
    population = Population(late_rate=0.3, late_s=600.0, lost_rate=0.2)
    world = VirtualWorld(Setting(population=population), COUNT, 1)
    seen = [world.advance(at_s)[0] for at_s in (600.0, 1200.0, 12_000.0)]
    for windows, (since_s, until_s) in zip(seen[:2], ((0, 600), (600, 1200)), strict=True):
        assert ((windows.arrived_s > since_s) & (windows.arrived_s <= until_s)).all()
    made = Windows.joined(seen)
    assert len(np.unique(np.stack([made.device, made.end_s]), axis=1).T) == len(made)
    early = made.rows(made.end_s <= 1100.0)
    expected = COUNT * 1100 / 60
    assert len(early) / expected == pytest.approx(0.8, rel=0.05)
    assert (early.arrived_s - early.end_s > 5.0).mean() == pytest.approx(0.3, rel=0.1)


def test_an_install_is_refused_or_put_back_or_followed_by_silence():
    candidate = Candidate(refused_rate=0.25, reverted_rate=0.25, reverted_s=30.0, silent_rate=0.2)
    world = VirtualWorld(Setting(candidate=candidate), COUNT, 1)
    everyone = np.arange(COUNT)
    world.deploy(everyone)
    _, events = world.advance(600.0)
    counts = np.bincount(events.outcome, minlength=4)
    assert counts[Outcome.REFUSED] / COUNT == pytest.approx(0.25, abs=0.06)
    assert counts[Outcome.COMMITTED] + counts[Outcome.REFUSED] == COUNT
    assert counts[Outcome.REVERTED] / counts[Outcome.COMMITTED] == pytest.approx(0.25, abs=0.06)
    refused = events.device[events.outcome == Outcome.REFUSED]
    reverted = events.device[events.outcome == Outcome.REVERTED]
    gone = np.concatenate([refused, reverted])
    assert not world.candidate[gone].any()
    windows, _ = world.advance(1200.0)
    heard = np.bincount(windows.device, minlength=COUNT) > 0
    assert heard[gone].all()
    quiet = np.flatnonzero(~heard)
    assert len(quiet) / COUNT == pytest.approx(0.75 * 0.75 * 0.2, abs=0.05)

    world.deploy(everyone)  # a device does not try again what it has put back
    world.revert(everyone)
    _, events = world.advance(1800.0)
    assert set(events.outcome) == {Outcome.RESTORED}
    assert not world.candidate.any()
    windows, _ = world.advance(2400.0)
    assert (np.bincount(windows.device, minlength=COUNT) > 0).all()


def test_a_rollback_ends_installs_that_are_under_way():
    world = VirtualWorld(Setting(candidate=Candidate(install_s=300.0)), COUNT, 1)
    world.deploy(np.arange(COUNT))
    world.advance(1.0)
    world.revert(np.arange(COUNT))
    windows, events = world.advance(3600.0)
    assert len(events) == 0
    assert not windows.candidate.any()


def test_drift_scores_move_with_the_candidate_and_spread_with_few_outputs():
    population = Population(output_drift=0.05, output_drift_spread=0.0)
    windows = updated(Setting(population, Candidate(drift_factor=4.0)))
    assert windows.output_drift[~windows.candidate].mean() == pytest.approx(0.05, abs=0.02)
    assert windows.output_drift[windows.candidate].mean() == pytest.approx(0.2, abs=0.02)
    few = updated(Setting(Population(output_drift=0.05, requests_per_min=4.0)))
    assert np.nanstd(few.output_drift) > 3 * np.nanstd(windows.output_drift[~windows.candidate])
    assert np.isnan(few.output_drift[few.requests == 0]).all()


def test_the_past_has_the_rates_of_the_present():
    world = VirtualWorld(Setting(population=Population(slow_rate=0.1, wander=0.2)), COUNT, 1)
    past = world.history()
    windows, _ = world.advance(3600.0)
    assert past.total["error_rate"].mean() == pytest.approx(43_200, rel=0.01)
    for metric in ("error_rate", "over_latency_rate"):
        bad, total = windows.rate(metric)
        before = past.bad[metric].sum() / past.total[metric].sum()
        assert bad.sum() / total.sum() == pytest.approx(before, rel=0.1)
    assert past.total["feedback_error_rate"].sum() == 0
