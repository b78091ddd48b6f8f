"""What of a spec depends on the fleet is decided once, from the slots of its devices."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.trust import Directive, share_now_bp
from fleet.rollout.parsing import parse_spec
from fleet.rollout.resolving import SMALLEST_FLEET, can_compare, resolve
from fleet.rollout.spec import ALL_BP, RolloutSpec
from fleet.rollout.strategies import wanted

BAKE_S = 600.0


def asked(*stages: dict[str, Any], **changes: Any) -> RolloutSpec:
    raw = {"bundle": "bundles/cam/digits-2", **changes}
    if stages:
        raw["stages"] = [{"bake_s": BAKE_S, **stage} for stage in stages]
    return parse_spec(raw)


def spread(devices: int) -> list[int]:
    """Slots of that many devices, evenly over all, in an order of their own."""
    return [(7 * number % devices) * ALL_BP // devices for number in range(devices)]


def held(spec: RolloutSpec, slots: list[int]) -> int:
    return sum(slot >= spec.reach_bp for slot in slots)


@pytest.mark.parametrize(
    ("hold_back", "devices", "expected"),
    [
        ("auto", 5000, 250),  # 5 %
        ("auto", 1000, 100),  # at least 100
        ("auto", 150, 75),  # at most half
        ("auto", SMALLEST_FLEET - 1, 0),
        ("0", 1000, 0),
        ("30", 1000, 30),
        ("3000", 1000, 500),
        ("10%", 1000, 100),
        ("auto", 0, 0),
    ],
)
def test_hold_back(hold_back: str, devices: int, expected: int) -> None:
    slots = spread(devices) if devices else []
    spec = resolve(asked(hold_back=hold_back), slots)
    assert held(spec, slots) == expected
    assert spec.stages[-1].percent_bp == spec.reach_bp
    assert spec.stages[0].percent_bp == 1000


@pytest.mark.parametrize(
    "spec",
    [
        asked({"percent_bp": ALL_BP, "bake_s": 100}),
        asked(guards={"statistics": "off"}),
        asked(guards={"metrics": {}}),
        asked(strategy="all-at-once"),
    ],
)
def test_nobody_is_held_back_where_nothing_is_compared(spec: RolloutSpec) -> None:
    assert resolve(spec, spread(1000)).hold_back_bp == 0


def test_who_is_told_to_hold_back_does_even_so() -> None:
    spec = resolve(asked(strategy="all-at-once", hold_back="5%"), spread(1000))
    assert (spec.hold_back_bp, spec.stages[0].percent_bp) == (500, 9500)


def test_blue_green_puts_the_bundle_beside_on_everyone() -> None:
    spec = resolve(asked(strategy="blue-green"), spread(1000))
    assert [stage.percent_bp for stage in spec.stages] == [ALL_BP, 1000, 9000]


def test_counts_become_shares() -> None:
    slots = spread(500)
    spec = resolve(asked({"devices": 20}, {"devices": 100}, {"percent_bp": ALL_BP}), slots)
    reached = [sum(slot < stage.percent_bp for slot in slots) for stage in spec.stages]
    assert reached == [20, 100, 400]
    assert spec.stages[0].devices == 20
    few = resolve(asked({"devices": 20}, {"percent_bp": ALL_BP}), spread(5))
    assert few.stages[0].percent_bp == ALL_BP


@pytest.mark.parametrize("ramp", ["linear", "exponential"])
def test_a_ramp_never_lets_more_in_than_asked(ramp: str) -> None:
    slots = spread(2000)
    stage = {"percent_bp": ALL_BP, "devices_per_minute": 40, "ramp": ramp}
    spec = resolve(asked({"percent_bp": 500}, stage, hold_back="0"), slots)
    ramped = spec.stages[1]
    assert ramped.bake_s == BAKE_S + ramped.ramp_s
    says = Directive(
        id="r1", number=1, model="digits", bundle=spec.bundle, sha256="a" * 64, length=1,
        stage_started_s=1000, **wanted(spec, 1).to_json(),
    )  # fmt: skip
    inside = [
        sum(slot < share_now_bp(says, 1000 + 60 * minute) for slot in slots)
        for minute in range(int(ramped.ramp_s // 60) + 2)
    ]
    assert inside[0] == 100
    assert inside[-1] == 2000
    steps = [after - before for before, after in itertools.pairwise(inside)]
    assert max(steps) <= 40 + 1  # a slot holds a fifth of a device here
    whole = steps[: int(ramped.ramp_s // 60)]
    if ramp == "exponential":
        assert all(after >= before - 1 for before, after in itertools.pairwise(whole))
        assert whole[-1] > 5 * whole[0]
    else:
        assert max(whole) - min(whole) <= 1
    again = resolve(spec, slots)
    assert again == spec


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, ALL_BP - 1), max_size=300),
    st.lists(st.integers(1, ALL_BP - 1), unique=True, max_size=4),
    st.sampled_from(["auto", "0", "7", "5%", "33.3%"]),
)
def test_what_is_decided_is_stored_and_stays(
    slots: list[int], shares: list[int], hold_back: str
) -> None:
    stages = [{"percent_bp": share} for share in (*sorted(shares), ALL_BP)]
    spec = resolve(asked(*stages, hold_back=hold_back), slots)
    assert parse_spec(spec.to_json()) == spec
    assert resolve(spec, slots[:-1]) == spec or spec.hold_back_bp == 0
    percents = [stage.percent_bp for stage in spec.stages]
    assert percents == sorted(percents)
    assert percents[-1] == spec.reach_bp >= 1
    if hold_back in ("auto", "7"):
        assert held(spec, slots) <= len(slots) // 2


def test_who_can_be_compared() -> None:
    assert can_compare(asked(), SMALLEST_FLEET)
    assert not can_compare(asked(), SMALLEST_FLEET - 1)
