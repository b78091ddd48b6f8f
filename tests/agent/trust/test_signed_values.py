"""Directives and releases as JSON: strict, bounded, the same after a round trip; messages that name the fault."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.trust import BundleRelease, Directive
from agent.trust.directive import OPTIONAL
from agent.trust.errors import MalformedError

DIRECTIVE = Directive(
    id="r7",
    number=7,
    model="keyword",
    bundle="bundles/cam/keyword-1.2.0",
    sha256="a" * 64,
    length=812,
    percent_bp=250,
    selector=(("site", "north"),),
    stage=1,
    created_s=1_800_000_000,
)
RELEASE = BundleRelease(
    path="bundles/cam/keyword-1.2.0",
    sha256="a" * 64,
    length=812,
    model="keyword",
    version="1.2.0",
    device_class="cam",
    hardware=("x86_64", "aarch64"),
    release=3,
    min_release=1,
    signed_at_s=1_800_000_000,
    limits=((0, 100), (14_400, 1_000), (86_400, 10_000)),
    agent=">=0.1",
    onnxruntime=">=1.20,<2",
)


def read_release(custom: Any) -> BundleRelease:
    return BundleRelease.from_target(RELEASE.path, RELEASE.sha256, RELEASE.length, custom)


EVERY_KEY = replace(
    DIRECTIVE,
    mode="ab",
    beside_bp=500,
    traffic_bp=2_000,
    routing_key="customer",
    from_bp=100,
    stage_started_s=1_800_000_100,
    ramp_s=3_600,
    ramp_doublings=4,
    open_hours=("01:00-05:00", "sat 00:00-23:59", "mon-fri 22:00-04:00"),
    exclude=(("id", "camera-7"), ("site", "lab")),
    stopped=("cam/cuda",),
    retries=2,
    older=True,
)


def test_what_a_plain_canary_does_not_use_is_left_out() -> None:
    assert not set(DIRECTIVE.to_json()) & OPTIONAL
    assert set(EVERY_KEY.to_json()) >= OPTIONAL
    assert Directive.from_json(EVERY_KEY.to_json()) == EVERY_KEY


def test_round_trips() -> None:
    assert Directive.from_json(DIRECTIVE.to_json()) == DIRECTIVE
    assert read_release(RELEASE.to_json()) == RELEASE
    assert DIRECTIVE.target_path == "rollouts/r7"
    assert DIRECTIVE.device_class == "cam"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("id", "R 7", "id = 'R 7' is not text of the form"),
        ("number", -1, "number = '-1' is not a whole number from 0 to"),
        ("number", 2**53 + 1, "not a whole number"),
        ("number", True, "not a whole number"),
        ("number", 1.0, "not a whole number"),
        ("model", "", "not text"),
        ("model", None, "not text"),
        ("bundle", "bundles/cam/../x", "not text"),
        ("bundle", "rollouts/r7", "not text"),
        ("sha256", "A" * 64, "not text"),
        ("sha256", "a" * 64 + "\n", "not text"),
        ("mode", "mirror", "is not one of canary, shadow, ab, blue-green"),
        ("mode", ["canary"], "is not one of canary"),
        ("beside_bp", 10_001, "from 0 to 10000"),
        ("traffic_bp", -1, "from 0 to 10000"),
        ("routing_key", "a b", "is not text of the form"),
        ("routing_key", None, "is not text of the form"),
        ("ramp_doublings", 21, "from 0 to 20"),
        ("retries", True, "a whole number from 0 to 10"),
        ("open_hours", "01:00-05:00", "a list of at most 64"),
        ("open_hours", ["25:00-05:00"], "a list of text of the form"),
        ("open_hours", ["mon-fri  01:00-05:00"], "a list of text of the form"),
        ("exclude", [["id"]], "a list of pairs of label and value"),
        ("exclude", {"id": "x"}, "a list of at most 64 pairs"),
        ("exclude", [["id", "x" * 129]], "a list of pairs"),
        ("stopped", ["edge"], "a list of text of the form"),
        ("stopped", ["edge/cpu"] * 65, "a list of at most 64"),
        ("kind", "Deploy", "is not one of deploy, rollback"),
        ("percent_bp", 10_001, "from 0 to 10000"),
        ("halt", 0, "true or false"),
        ("selector", [["a", "b"]], "an object of at most 32 labels"),
        ("selector", {"a": 1}, "an object of text"),
        ("selector", {"a": "x" * 129}, "at most 128 characters"),
        ("selector", {str(number): "" for number in range(33)}, "at most 32 labels"),
    ],
)
def test_directive_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(MalformedError) as caught:
        Directive.from_json({**DIRECTIVE.to_json(), key: value})
    assert message in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "other", "which is another path"),
        ("version", "", "not text"),
        ("class", "../cam", "not text"),
        ("hardware", "x86_64", "a list of at most 32 names"),
        ("hardware", [1], "not text"),
        ("release", "3", "not a whole number"),
        ("limits", [[0]], "a list of [seconds, basis points]"),
        ("limits", [[0, 10_001]], "from 0 to 10000"),
        ("limits", {}, "a list of at most 32 pairs"),
        ("agent", 1, "text of at most 128 characters"),
    ],
)
def test_release_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(MalformedError) as caught:
        read_release({**RELEASE.to_json(), key: value})
    assert message in str(caught.value)


def test_missing_and_unknown_keys_are_named() -> None:
    body = DIRECTIVE.to_json()
    del body["halt"]
    with pytest.raises(MalformedError, match=r"missing: \['halt'\], unknown: \['window'\]"):
        Directive.from_json({**body, "window": 1})
    custom = RELEASE.to_json()
    del custom["limits"]
    with pytest.raises(MalformedError, match=r"missing: \['limits'\], unknown: \[\]"):
        read_release(custom)


@pytest.mark.parametrize("value", [None, [], "x", 1])
def test_what_is_no_object(value: object) -> None:
    with pytest.raises(MalformedError, match="must be a JSON object"):
        Directive.from_json(value)
    with pytest.raises(MalformedError, match="has no custom object"):
        read_release(value)


@pytest.mark.parametrize("sha256", [None, "", "a" * 63, 1])
def test_release_without_a_digest(sha256: object) -> None:
    with pytest.raises(MalformedError, match="sha256"):
        BundleRelease.from_target(RELEASE.path, sha256, 1, RELEASE.to_json())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(st.sampled_from(sorted(DIRECTIVE.to_json())), anything)
def test_any_value_is_read_or_refused(key: str, value: object) -> None:
    try:
        read = Directive.from_json({**DIRECTIVE.to_json(), key: value})
    except MalformedError:
        return
    assert Directive.from_json(read.to_json()) == read


@pytest.mark.parametrize(
    ("age_s", "limit_bp"),
    [(-1, 0), (0, 100), (14_399, 100), (14_400, 1_000), (86_400, 10_000), (10**9, 10_000)],
)
def test_speed_limit(age_s: int, limit_bp: int) -> None:
    assert RELEASE.limit_bp(RELEASE.signed_at_s + age_s) == limit_bp


def test_no_speed_limit() -> None:
    assert replace(RELEASE, limits=()).limit_bp(0.0) == 10_000
