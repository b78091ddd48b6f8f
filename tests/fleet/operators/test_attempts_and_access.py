"""How often one may try, and the table of routes."""

import re

import pytest

from fleet.operators.access import RULES, find_rule, is_known
from fleet.operators.attempts import Allowance, Attempts, Budget, network_of
from fleet.operators.roles import Role

EACH, TOGETHER = Allowance(3, 10.0), Allowance(5, 1.0)


def test_an_address_that_fails_too_often_waits_and_others_do_not() -> None:
    attempts = Attempts(EACH, TOGETHER)
    for _ in range(3):
        assert attempts.wait_s("10.0.0.1", 100.0) == 0
        attempts.failed("10.0.0.1", 100.0)
    assert attempts.wait_s("10.0.0.1", 100.0) == 10.0
    assert attempts.wait_s("10.0.0.1", 104.0) == 6.0
    assert attempts.wait_s("10.0.0.2", 100.0) == 0
    assert attempts.wait_s("10.0.0.1", 110.0) == 0


def test_many_addresses_together_are_limited() -> None:
    attempts = Attempts(EACH, TOGETHER)
    for number in range(5):
        attempts.failed(f"10.0.0.{number}", 100.0)
    assert attempts.wait_s("10.0.0.99", 100.0) == 1.0
    assert attempts.wait_s("10.0.0.99", 101.0) == 0


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    attempts = Attempts(EACH, Allowance(1000, 1.0))
    for _ in range(10):
        attempts.failed("10.0.0.1", 100.0)
    assert attempts.wait_s("10.0.0.1", 50.0) == 10.0


def test_the_addresses_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.operators.attempts.MAX_ADDRESSES", 100)
    attempts = Attempts(EACH, Allowance(10**9, 1.0))
    for number in range(110):
        attempts.failed(f"host-{number}", 100.0)
    assert len(attempts._by_network) == 100
    assert "host-0" not in attempts._by_network


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("", ""),
        ("no address", "no address"),
    ],
)
def test_one_customer_is_one_address(address: str, network: str) -> None:
    assert network_of(address) == network


def test_a_budget_counts_what_it_leaves_out() -> None:
    budget = Budget(Allowance(2, 60.0))
    assert [budget.take(1000.0) for _ in range(5)] == [True, True, False, False, False]
    assert budget.left_out == 3
    assert budget.take(1060.0)


def test_rules_are_found_by_method_and_whole_path() -> None:
    found = find_rule("POST", "/v1/rollouts/r7/approve")
    assert found is not None
    assert (found.operation, found.role, found.audited) == ("rollout change", Role.OPERATOR, True)
    for method, path in (
        ("POST", "/v1/rollouts/r7/approve/x"), ("POST", "/v1/rollouts//approve"), ("GET", "/v1/statusx"),
        ("GET", "/x/v1/status"), ("HEAD", "/v1/status"), ("get", "/v1/status"), ("GET", "/v1/devices/a\n/b"),
    ):  # fmt: skip
        assert find_rule(method, path) is None, (method, path)
    assert is_known("/v1/status")
    assert not is_known("/v1/nothing")


def test_the_table_says_each_route_once_and_a_viewer_changes_nothing() -> None:
    keys = [(rule.method, re.sub(r"\{\w+\}", "{}", rule.path)) for rule in RULES]
    assert len(keys) == len(set(keys))
    for rule in RULES:
        if rule.method == "GET":
            assert rule.role is Role.VIEWER
            assert not rule.audited
        if rule.audited:
            assert rule.role is not Role.VIEWER
