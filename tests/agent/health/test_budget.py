"""Resource budgets: sustained crossings are findings, peaks and missing sensors are not."""

import re

import pytest

from agent.health.budget import Budget, BudgetLimits, BudgetWatch
from agent.ports import ModelMemory, ResourceUse

MIB = 1 << 20
LIMITS = BudgetLimits(
    max_rss_bytes=100 * MIB,
    max_cpu_percent=80,
    max_temperature_c=70,
    min_disk_free_bytes=50 * MIB,
    sustained_s=10,
)


def use(**changes):
    values = {"rss_bytes": 90 * MIB, "cpu_percent": 10.0, "disk_free_bytes": 900 * MIB,
              "memory_available_bytes": 0, "temperature_c": 40.0}  # fmt: skip
    return ResourceUse(**{**values, **changes})


@pytest.mark.parametrize(
    ("over", "budget", "text"),
    [
        ({"rss_bytes": 101 * MIB}, Budget.MEMORY, r"hold 101 MiB, allowed are 100 MiB .*for 10 s"),
        ({"cpu_percent": 95.0}, Budget.CPU, r"95 % of one core, allowed are 80 %"),
        ({"temperature_c": 71.0}, Budget.TEMPERATURE, r"71 °C, allowed are 70 °C"),
        ({"disk_free_bytes": 49 * MIB}, Budget.DISK, r"49 MiB are free .*wanted are 50 MiB"),
    ],
)
def test_a_sustained_crossing_is_a_breach_until_it_ends(over, budget, text):
    watch = BudgetWatch(LIMITS)
    assert watch.observe(use(**over), 100) == ()
    assert watch.observe(use(**over), 109.9) == ()
    (breach,) = watch.observe(use(**over), 110)
    assert (breach.budget, breach.since_s) == (budget, 100)
    assert re.search(text, breach.text)
    assert watch.breaches == (breach,)
    assert watch.observe(use(), 111) == ()
    assert watch.observe(use(**over), 112) == ()  # it begins anew


def test_a_peak_in_between_is_no_breach():
    watch = BudgetWatch(LIMITS)
    for time in range(0, 60, 5):
        hot = 75.0 if time % 10 else 60.0
        assert watch.observe(use(temperature_c=hot), time) == ()


@pytest.mark.parametrize("over", [{"temperature_c": None}, {"disk_free_bytes": 0}])
def test_a_missing_sensor_breaks_nothing(over):
    watch = BudgetWatch(LIMITS)
    watch.observe(use(**over), 0)
    assert watch.observe(use(**over), 100) == ()


def test_without_limits_nothing_is_watched():
    assert not BudgetLimits().any
    assert LIMITS.any
    watch = BudgetWatch(BudgetLimits(sustained_s=0))
    assert watch.observe(use(rss_bytes=1 << 60, cpu_percent=1e9, temperature_c=199.0), 5) == ()


def test_two_at_once_are_two():
    watch = BudgetWatch(BudgetLimits(max_rss_bytes=1, max_cpu_percent=1, sustained_s=0))
    assert [it.budget for it in watch.observe(use(), 0)] == [Budget.MEMORY, Budget.CPU]


def test_models_may_hold_what_their_bundles_state_together():
    watch = BudgetWatch(BudgetLimits(sustained_s=10))
    within = ModelMemory(300 * MIB, 300 * MIB, ("bundles/edge/a-1 64 MiB",))
    above = ModelMemory(
        301 * MIB, 300 * MIB, ("bundles/edge/a-1 64 MiB", "bundles/edge/b-2 90 MiB")
    )
    assert watch.observe(use(), 0, within) == ()
    assert watch.observe(use(), 1, above) == ()
    (breach,) = watch.observe(use(), 11, above)
    assert (breach.budget, breach.since_s) == (Budget.MODELS, 1)
    assert breach.text.startswith(
        "the model server holds 301 MiB, its bundles state 300 MiB with the runtime: "
        "bundles/edge/a-1 64 MiB, bundles/edge/b-2 90 MiB"
    )
    assert watch.observe(use(), 12, None) == ()  # it was started anew
