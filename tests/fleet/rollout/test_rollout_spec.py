"""What an operator may ask for, and what each mistake is told."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import RequestError
from fleet.rollout.parsing import parse_spec
from fleet.rollout.reading import parse_duration, parse_percent
from fleet.rollout.rollout_toml import spec_from_toml
from fleet.rollout.spec import (
    ALL_BP,
    Check,
    Guards,
    RolloutSpec,
    Stage,
    StageKind,
    Statistics,
    Strategy,
    bundle_class,
    selectors_overlap,
)

MINIMAL: dict[str, Any] = {"bundle": "bundles/cam/digits-1.0"}
ALL_DEVICES: dict[str, Any] = {"percent_bp": 10_000, "bake_s": 1}
STANDBY = {**ALL_DEVICES, "kind": "standby", "devices_per_minute": 5}
HUNDRED = [{"percent_bp": 10_000, "bake_s": 1}]


def test_a_bundle_is_enough() -> None:
    spec = parse_spec(MINIMAL)
    assert spec.model == ""
    assert spec.guards == Guards()
    assert spec.stages[-1].percent_bp == ALL_BP


@given(
    st.lists(st.integers(1, ALL_BP - 1), unique=True, max_size=8),
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}", fullmatch=True),
        st.text(st.characters(categories=("L", "N")), min_size=1, max_size=9),
        max_size=16,
    ),
    st.floats(0, 0.99),
)
def test_what_is_stored_reads_back_the_same(
    shares: list[int], selector: dict[str, str], rate: float
) -> None:
    stages = tuple(Stage(share, 5.0) for share in (*sorted(shares), ALL_BP))
    spec = RolloutSpec(
        model="digits",
        bundle="bundles/cam/digits-1",
        stages=stages,
        selector=tuple(sorted(selector.items())),
        guards=Guards(max_error_rate=rate, max_over_latency_rate=None),
    )
    assert parse_spec(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bundle": 7}, "bundle = 7 must be a text"),
        ({"bundle": "digits-1"}, "bundles/CLASS/MODEL-VERSION"),
        ({"bundle": "bundles/../x-1"}, "bundles/CLASS/MODEL-VERSION"),
        ({"model": "other"}, "not the model of bundle"),
        ({"stagse": []}, "did you mean 'stages'?"),
        ({"stages": []}, "has 1 to 20 stages, this one 0"),
        ({"stages": HUNDRED * 2}, "each stage must reach more of the fleet"),
        ({"stages": [{"percent_bp": 5000, "bake_s": 1}]}, "it must be 100 %"),
        ({"stages": [{"percent_bp": 0, "bake_s": 1}]}, "a whole number from 1 to 10000"),
        ({"stages": [{"percent_bp": True, "bake_s": 1}]}, "a whole number from 1 to 10000"),
        ({"stages": [{"percent_bp": 10_000}]}, "stage 1 has no bake_s"),
        ({"stages": [{"percent_bp": 10_000, "bake_s": -1}]}, "bake_s = -1 must be a number"),
        ({"stages": [{"percent_bp": 10_000, "bake_s": float("nan")}]}, "bake_s = nan"),
        ({"stages": "all"}, "must be a list"),
        ({"stages": [7]}, "stage 1 must be a table"),
        ({"selector": {"Region": "x"}}, "no label name"),
        ({"selector": {"region": ""}}, "no label value"),
        ({"selector": {"region": 7}}, "no label value"),
        ({"selector": {"region": "a\0b"}}, "no label value"),
        ({"selector": {f"l{i}": "x" for i in range(17)}}, "at most 16 labels"),
        ({"guards": {"max_eror_rate": 0.1}}, "did you mean 'max_error_rate'?"),
        ({"guards": {"max_error_rate": 1}}, "a share from 0 to below 1"),
        ({"guards": {"max_error_rate": -0.1}}, "a share from 0 to below 1"),
        ({"guards": {"max_error_rate": float("nan")}}, "a share from 0 to below 1"),
        ({"guards": {"max_error_rate": "5 %"}}, "a share from 0 to below 1"),
        ({"guards": {"min_requests": 0}}, "min_requests = 0"),
        ({"guards": {"min_devices": 0}}, "min_devices = 0"),
        ({"guards": {"silence_s": 0}}, "silence_s = 0"),
        ({"strategy": "green"}, "one of canary, shadow-then-canary, ab, blue-green, all-at-once"),
        ({"install_deadline_s": 0}, "install_deadline_s = 0"),
        ({"strategy": "ab", "stages": HUNDRED}, "needs stages of kind ab and then of kind canary"),
        ({"stages": [{"devices": 5, "bake_s": 1}]}, "the last stage has 5 devices: it must be"),
        ({"stages": [{"devices": 5, "bake_s": 1}] * 2}, "each stage must reach more"),
        ({"stages": [{**ALL_DEVICES, "kind": "blue"}]}, "kind = 'blue' must be one of canary, sha"),
        ({"stages": [{**ALL_DEVICES, "traffic_bp": 5}]}, "traffic is for shadow and ab"),
        ({"stages": [{**ALL_DEVICES, "ramp": "linear"}]}, "a ramp and no devices_per_minute"),
        ({"stages": [{**ALL_DEVICES, "ramp": "up"}]}, "must be one of linear, exponential"),
        ({"stages": [{**ALL_DEVICES, "approval": 1}]}, "approval = 1 must be true or false"),
        ({"strategy": "blue-green", "stages": [STANDBY, ALL_DEVICES]}, "for stages of kind canary"),
        ({"exclude": ["camera-7"]}, "write NAME=VALUE"),
        ({"exclude": ["Id=camera-7"]}, "exclude key 'Id' is no label name"),
        ({"exclude": "id=camera-7"}, "must be a list"),
        ({"open_hours": ["nights"]}, "no span of local time"),
        ({"open_hours": ["mon 25:00-26:00"]}, "no span of local time"),
        ({"hold_back": "60%"}, "hold_back = '60%' is not understood"),
        ({"hold_back": "some"}, "hold_back = 'some' is not understood"),
        ({"retries": 11}, "a whole number from 0 to 10"),
        ({"routing_key": "user"}, "routing_key is for strategy ab"),
        ({"guards": {"statistics": "maybe"}}, "one of auto, on, off"),
        ({"guards": {"metrics": {"eror_rate": 1.2}}}, "metric 'eror_rate' is not known"),
        ({"guards": {"metrics": {"error_rate": 1.0}}}, "a factor from 1.01 to 100"),
        ({"guards": {"statistics": "on", "metrics": {}}}, "needs something to compare"),
        ({"guards": {"alpha": 0.5}}, "alpha = 0.5"),
        ({"checks": [{"url": "ftp://x"}]}, "check 1: url = 'ftp://x' is no address"),
        ({"checks": [{"url": "http://[x"}]}, "is no address"),
        ({"checks": [{"url": "http://x/"}] * 2}, "the same url"),
        ({"checks": [{"url": "http://x/", "timeout_s": 0}]}, "timeout_s = 0"),
    ],
)
def test_a_mistake_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_spec({**MINIMAL, **change})
    assert says in str(caught.value)


@pytest.mark.parametrize("raw", [None, 7, "x", [], [MINIMAL]])
def test_what_is_no_table_is_refused(raw: object) -> None:
    with pytest.raises(RequestError, match="must be a table"):
        parse_spec(raw)


def test_a_rollout_without_any_guard_is_refused() -> None:
    off = {
        "max_install_failure_rate": None,
        "max_error_rate": "off",
        "max_over_latency_rate": None,
        "max_output_violation_rate": "off",
    }
    with pytest.raises(RequestError, match="nothing could stop this rollout"):
        parse_spec({**MINIMAL, "guards": off})
    one_left = {**off, "max_output_violation_rate": 0.5}
    assert parse_spec({**MINIMAL, "guards": one_left}).guards.rates() == (None, None, 0.5)


def test_toml() -> None:
    spec = spec_from_toml(
        """
        bundle = "bundles/cam/digits-2.0"
        install_deadline = "30m"
        [selector]
        region = "north"
        [[stage]]
        percent = 0.5
        bake = "90s"
        [[stage]]
        percent = "100%"
        bake = 60
        [guards]
        max_error_rate = 0.02
        max_over_latency_rate = "off"
        """
    )
    assert spec.stages == (Stage(50, 90.0), Stage(10_000, 60.0))
    assert spec.selector == (("region", "north"),)
    assert spec.install_deadline_s == 1800.0
    assert spec.guards.max_error_rate == 0.02
    assert spec.guards.max_over_latency_rate is None


EVERYTHING = """
bundle = "bundles/cam/digits-2.0"
strategy = "ab"
routing_key = "user"
exclude = ["id=camera-7", "site=lab"]
open_hours = ["Mon-Fri  01:00-05:00", "sat 00:00-23:59"]
hold_back = 50
retries = 2
[[stage]]
devices = 20
traffic = "25%"
bake = "1h"
[[stage]]
percent = 100
bake = "2h"
approval = true
devices_per_minute = 30
ramp = "exponential"
[guards]
statistics = "on"
alpha = 0.02
[guards.metrics]
error_rate = 1.5
"counter:jams" = 2
[[check]]
url = "https://ci.example.com/gate"
timeout = "5s"
every = "2m"
"""


def test_every_key_of_a_file() -> None:
    spec = spec_from_toml(EVERYTHING)
    assert spec.strategy is Strategy.AB
    assert spec.stages == (
        Stage(0, 3600.0, StageKind.AB, devices=20, traffic_bp=2500),
        Stage(10_000, 7200.0, approval=True, devices_per_minute=30.0, ramp="exponential"),
    )
    assert spec.exclude == (("id", "camera-7"), ("site", "lab"))
    assert spec.open_hours == ("mon-fri 01:00-05:00", "sat 00:00-23:59")
    assert (spec.hold_back, spec.retries, spec.routing_key) == ("50", 2, "user")
    assert spec.guards.statistics is Statistics.ON
    assert spec.guards.metrics == (("counter:jams", 2.0), ("error_rate", 1.5))
    assert spec.checks == (Check("https://ci.example.com/gate", 5.0, 120.0),)
    assert parse_spec(spec.to_json()) == spec


def test_what_stands_in_for_the_file() -> None:
    over = {"bundle": "bundles/cam/digits-3", "strategy": "canary"}
    spec = spec_from_toml('bundle = "bundles/cam/digits-2"\nstrategy = "ab"', over=over)
    assert (spec.bundle, spec.strategy) == ("bundles/cam/digits-3", Strategy.CANARY)


def test_a_spec_of_an_older_version_still_reads() -> None:
    stored = {
        "model": "digits", "bundle": "bundles/cam/digits-1", "strategy": "canary",
        "stages": [{"percent_bp": 10_000, "bake_s": 60.0}], "selector": {"site": "lab"},
        "guards": {"max_error_rate": 0.1, "min_installs": 3}, "install_deadline_s": 60.0,
    }  # fmt: skip
    spec = parse_spec(stored)
    assert spec.stages == (Stage(10_000, 60.0),)
    assert (spec.hold_back_bp, spec.exclude, spec.checks) == (0, (), ())


def test_the_last_stage_may_leave_the_hold_back_out() -> None:
    stages = [{"percent_bp": share, "bake_s": 1} for share in (1000, 5100, 5100)]
    spec = parse_spec({**MINIMAL, "stages": stages, "hold_back_bp": 4900})
    assert spec.reach_bp == 5100
    with pytest.raises(RequestError, match="it must be 100 %"):
        parse_spec({**MINIMAL, "stages": stages[:2], "hold_back_bp": 4800})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('bundle = "bundles/cam/a-1"\n[[stage]]\nbake = 1', "needs percent or devices, one of"),
        (
            'bundle = "bundles/cam/a-1"\n[[stage]]\nbake = 1\npercent = 1\ndevices = 1',
            "needs percent or devices, one of",
        ),
        ('bundle = "bundles/cam/a-1"\n[check]\nurl = "http://x"', "write [[check]]"),
        ('bundle = "bundles/cam/a-1"\n[[check]]\ntimeout = 1', "[[check]] 1 has no url"),
        ("bundle =", "no valid TOML"),
        ('bundle = "bundles/cam/a-1"\n[stage]\npercent = 1', "write [[stage]]"),
        ('bundle = "bundles/cam/a-1"\n[[stage]]\npercent = 1', "[[stage]] 1 has no bake"),
        ('bundle = "bundles/cam/a-1"\nstages = []\n[[stage]]\npercent = 1', "keep [[stage]]"),
        ('bundle = "bundles/cam/a-1"\ninstall_deadline = "soon"', "no duration"),
        ("x = 1\n" + "#" * 70_000, "larger than 65536 bytes"),
    ],
)
def test_a_mistake_in_toml_is_named(text: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        spec_from_toml(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5 h", 5400), ("1d", 86_400)]
)
def test_durations(text: str, expected: float) -> None:
    assert parse_duration(text, "x") == expected


@pytest.mark.parametrize("text", ["", "-1", "1w", "m", "1h30m", "inf", "nan"])
def test_no_durations(text: str) -> None:
    with pytest.raises(RequestError, match="no duration"):
        parse_duration(text, "x")


@pytest.mark.parametrize(("text", "expected"), [("10", 1000), ("0.01%", 1), ("100 %", 10_000)])
def test_percentages(text: str, expected: int) -> None:
    assert parse_percent(text, "x") == expected


@pytest.mark.parametrize("text", ["0", "0.001", "100.1", "-1", "x", "nan", "inf", ""])
def test_no_percentages(text: str) -> None:
    with pytest.raises(RequestError, match="no percentage"):
        parse_percent(text, "x")


def test_class_of_a_bundle() -> None:
    assert bundle_class("bundles/cam-2/a-b-1.0-rc1") == "cam-2"


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ((), (), True),
        ((("a", "1"),), (), True),
        ((("a", "1"),), (("b", "1"),), True),
        ((("a", "1"),), (("a", "2"),), False),
        ((("a", "1"), ("b", "1")), (("b", "2"),), False),
    ],
)
def test_overlap(one: Any, other: Any, overlap: bool) -> None:
    assert selectors_overlap(one, other) is overlap
    assert selectors_overlap(other, one) is overlap
