"""Who answers a request of an A/B, and which requests a shadow sees."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.runtime.routing import SLOTS, Role, Share, copied, routed_to_arm, routing_value

ARM = Share("a" * 64, Role.ARM, 2_500, "camera", "rollout-1")


@dataclass(frozen=True)
class Asked:
    parameters: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    request_id: str = ""


@pytest.mark.parametrize(
    ("key", "asked", "expected"),
    [
        ("camera", Asked({"camera": "left"}, "r-1"), "left"),
        ("camera", Asked({"camera": 7}), "7"),
        ("camera", Asked({"camera": 7.0}), "7"),
        ("camera", Asked({"camera": "7"}), "7"),
        ("camera", Asked({"camera": 7.5}), "7.5"),
        ("camera", Asked({"camera": float("inf")}), "inf"),
        ("camera", Asked({"camera": True}), "true"),
        ("camera", Asked({"camera": 0}), "0"),
        ("camera", Asked({"camera": ""}, "r-1"), "r-1"),
        ("camera", Asked({"other": "left"}, "r-1"), "r-1"),
        ("camera", Asked({"other": "left"}), None),
        ("", Asked({"camera": "left"}, "r-1"), "r-1"),
        ("", Asked({"": "left"}), None),
    ],
)
def test_the_value_is_the_parameters_else_the_requests_id(
    key: str, asked: Asked, expected: str | None
) -> None:
    assert routing_value(replace(ARM, routing_key=key), asked) == expected


def test_an_arm_gets_its_share_and_another_rollout_draws_anew() -> None:
    callers = [f"caller-{number}" for number in range(4_000)]
    first = {it for it in callers if routed_to_arm(ARM, it)}
    second = {it for it in callers if routed_to_arm(replace(ARM, salt="rollout-2"), it)}
    # Binomial with n = 4000 and p = 1/4 (1/16): five standard deviations are 137 (77).
    assert abs(len(first) - 1_000) < 137
    assert abs(len(first & second) - 250) < 77


@given(st.text(max_size=20), st.text(max_size=20), st.integers(0, SLOTS), st.integers(0, SLOTS))
@settings(max_examples=50)
def test_shares_are_nested_and_sticky(salt: str, value: str, one: int, other: int) -> None:
    small, large = (
        routed_to_arm(replace(ARM, salt=salt, traffic_bp=bp), value) for bp in sorted((one, other))
    )
    assert large or not small
    assert small == routed_to_arm(replace(ARM, salt=salt, traffic_bp=min(one, other)), value)


def test_none_and_all_are_exact() -> None:
    values = [str(number) for number in range(500)]
    assert not any(routed_to_arm(replace(ARM, traffic_bp=0), it) for it in values)
    assert all(routed_to_arm(replace(ARM, traffic_bp=SLOTS), it) for it in values)
    assert not any(copied(replace(ARM, traffic_bp=0), it, 0) for it in values)
    assert all(copied(replace(ARM, traffic_bp=SLOTS), it, 0) for it in values)


def test_a_shadow_sees_a_share_of_what_each_caller_asks_with_an_id_or_without() -> None:
    shadow = replace(ARM, role=Role.SHADOW)
    for copies in (
        sum(copied(shadow, f"r-{number}", 0) for number in range(4_000)),
        sum(copied(shadow, "", number) for number in range(4_000)),
    ):
        assert abs(copies - 1_000) < 137
