"""Windows and histograms add up, whatever their resolution."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.health.telemetry import (
    MAX_BUCKETS,
    MAX_COUNT,
    MAX_COUNTERS,
    MAX_ERROR_KINDS,
    MAX_OUTPUTS,
    OTHER,
    ServedModel,
    WindowAccumulator,
    merge_histograms,
    merge_windows,
)
from agent.ports import ResourceUse, ServedWindow
from protos import report_pb2

SHA_A, SHA_B = "a" * 64, "b" * 64


def histogram(values, scale):
    """By the definition: bucket i holds (2^(i/2^s), 2^((i+1)/2^s)]."""
    made = report_pb2.Histogram(scale=scale)
    indexes = []
    for value in values:
        if value == 0:
            made.zero_count += 1
        else:
            indexes.append(math.ceil(math.log2(value) * 2**scale) - 1)
        made.sum += value
        made.max = max(made.max, value)
    if indexes:
        made.offset = min(indexes)
        made.counts[:] = [0] * (max(indexes) - min(indexes) + 1)
        for index in indexes:
            made.counts[index - made.offset] += 1
    return made


def total(made):
    return made.zero_count + sum(made.counts)


# Powers of two exactly, so that bucket borders do not depend on rounding.
values = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 1024.0, 2.0**-20]), max_size=20)


@given(values, values, st.integers(-2, 4), st.integers(-2, 4))
def test_merging_equals_the_histogram_of_all_values(first, second, scale_a, scale_b):
    merged = histogram(first, scale_a)
    merge_histograms(merged, histogram(second, scale_b))
    assert total(merged) == len(first) + len(second)
    assert merged.sum == pytest.approx(sum(first) + sum(second))
    assert merged.max == max([*first, *second], default=0)
    assert len(merged.counts) <= MAX_BUCKETS
    expected = histogram([*first, *second], merged.scale)
    assert {merged.offset + i: c for i, c in enumerate(merged.counts) if c} == {
        expected.offset + i: c for i, c in enumerate(expected.counts) if c
    }


def test_merging_does_not_change_the_second():
    second = histogram([1, 2, 4], 3)
    before = second.SerializeToString()
    merge_histograms(histogram([1024], 0), second)
    assert second.SerializeToString() == before


def window(**fields):
    return report_pb2.Window(
        model="m", version="1", manifest_sha256=SHA_A, rollout_id="r1", **fields
    )


def test_windows_add_up():
    older = window(
        start_unix_ms=0, end_unix_ms=10, requests=3, failures=1, error_kinds={"boom": 1}, merged=1
    )
    older.resources.rss_bytes = 5
    newer = window(
        start_unix_ms=10,
        end_unix_ms=20,
        requests=4,
        failures=2,
        error_kinds={"boom": 1, "x": 1},
        merged=2,
    )
    both = merge_windows(older, newer)
    assert (both.start_unix_ms, both.end_unix_ms, both.requests, both.failures, both.merged) == (
        0,
        20,
        7,
        3,
        3,
    )
    assert dict(both.error_kinds) == {"boom": 2, "x": 1}
    assert both.resources.rss_bytes == 5
    assert older.requests == 3
    assert newer.requests == 4


def test_windows_of_different_bundles_do_not_add_up():
    with pytest.raises(ValueError, match="do not add up"):
        merge_windows(
            window(), report_pb2.Window(model="m", manifest_sha256=SHA_B, rollout_id="r1")
        )


def test_an_active_model_without_requests_yields_a_window():
    windows = WindowAccumulator(1000)
    [found] = windows.flush(
        61_000, [ServedModel("m", "1", SHA_A, "r1")], ResourceUse(7, 1.5, 8, 9, 40.0)
    )
    assert (found.model, found.version, found.rollout_id, found.requests) == ("m", "1", "r1", 0)
    assert (found.start_unix_ms, found.end_unix_ms, found.merged) == (1000, 61_000, 1)
    assert found.resources.temperature_c == 40.0
    assert windows.flush(62_000, [], None) == []


def test_the_last_window_of_a_replaced_version_keeps_its_rollout():
    windows = WindowAccumulator(0)
    windows.add([ServedWindow("m", "1", SHA_A, requests=2)])
    windows.flush(1, [ServedModel("m", "1", SHA_A, "r1")], None)
    windows.add(
        [ServedWindow("m", "1", SHA_A, requests=5), ServedWindow("m", "2", SHA_B, requests=1)]
    )
    found = {
        it.manifest_sha256: it
        for it in windows.flush(2, [ServedModel("m", "2", SHA_B, "r2")], None)
    }
    assert (found[SHA_A].requests, found[SHA_A].rollout_id) == (5, "r1")
    assert (found[SHA_B].requests, found[SHA_B].rollout_id) == (1, "r2")


def test_a_loaded_version_that_nobody_asks_yields_nothing():
    windows = WindowAccumulator(0)
    windows.add([ServedWindow("m", "1", SHA_A)])
    assert windows.flush(1, [], None) == []


def test_error_kinds_are_bounded():
    windows = WindowAccumulator(0)
    kinds = {f"kind {number}": 1 for number in range(3 * MAX_ERROR_KINDS)}
    windows.add([ServedWindow("m", "1", SHA_A, requests=200, error_kinds=kinds)])
    [found] = windows.flush(1, [], None)
    assert len(found.error_kinds) == MAX_ERROR_KINDS
    assert sum(found.error_kinds.values()) == len(kinds)
    assert found.error_kinds[OTHER] > 1


def test_feedback_and_notices_add_up():
    older = report_pb2.Window(
        model="m", feedback_count=2, feedback_correct=1, feedback_abs_error_sum=0.5, notices=["hot"]
    )
    newer = report_pb2.Window(
        model="m", feedback_count=3, feedback_abs_error_sum=1.0, feedback_unknown=1,
        notices=["full", "hot"],
    )  # fmt: skip
    merged = merge_windows(older, newer)
    assert (merged.feedback_count, merged.feedback_correct, merged.feedback_unknown) == (5, 1, 1)
    assert merged.feedback_abs_error_sum == 1.5
    assert list(merged.notices) == ["full", "hot"]


def test_feedback_for_a_version_that_is_gone_is_reported():
    windows = WindowAccumulator(0)
    windows.add([ServedWindow("m", "1", SHA_A, feedback_count=2, feedback_abs_error_sum=0.25)])
    [window] = windows.flush(1000, [], None, ["too hot"] * 99)
    assert (window.feedback_count, window.feedback_abs_error_sum) == (2, 0.25)
    assert len(window.notices) == 8


# --- roles, outputs, counters -----------------------------------------------------------------------

COUNTS = ("requests", "shadow_compared", "shadow_disagreed", "shadow_dropped",
          "confidence_count", "low_confidence", "feedback_unknown")  # fmt: skip
MAPS = ("error_kinds", "output_counts", "counters")
names = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 9), max_size=4)
served = st.builds(
    ServedWindow,
    model=st.just("m"),
    version=st.just("1"),
    manifest_sha256=st.sampled_from([SHA_A, SHA_B]),
    role=st.sampled_from(["", "arm", "shadow"]),
    **{name: st.integers(0, 9) for name in COUNTS},
    **dict.fromkeys(MAPS, names),
)


def summed(windows):
    """Everything in windows, by version and role."""
    total = {}
    for window in windows:
        key = (window.manifest_sha256, window.role)
        sums = total.setdefault(key, dict.fromkeys(COUNTS, 0) | {name: {} for name in MAPS})
        for name in COUNTS:
            sums[name] += getattr(window, name)
        for name in MAPS:
            for word, count in getattr(window, name).items():
                sums[name][word] = sums[name].get(word, 0) + count
    return total


@given(st.lists(served, max_size=6), st.integers(0, 6))
@settings(max_examples=50)
def test_whether_windows_are_added_before_or_after_they_leave_the_sum_is_the_same(parts, cut):
    serving = [
        ServedModel("m", "1", sha, "r", role)
        for sha in (SHA_A, SHA_B)
        for role in ("", "arm", "shadow")
    ]
    windows = WindowAccumulator(0)
    older, newer = [], []
    for some, out in ((parts[:cut], older), (parts[cut:], newer)):
        windows.add(some)
        found = windows.flush(1, serving, None)
        out.extend(sorted(found, key=lambda it: (it.manifest_sha256, it.role)))
    merged = [merge_windows(one, two) for one, two in zip(older, newer, strict=True)]
    expected = summed(parts)
    assert {key: sums for key, sums in summed(merged).items() if key in expected} == expected
    assert len(merged) == len(serving)
    assert all(it.rollout_id == "r" for it in merged)


def test_a_version_beside_yields_a_window_of_its_own_even_without_a_request():
    windows = WindowAccumulator(0)
    beside = ServedModel("m", "2", SHA_B, "r2", "arm")
    found = windows.flush(1, [ServedModel("m", "1", SHA_A, "r1"), beside], None)
    assert [(it.manifest_sha256, it.role, it.rollout_id) for it in found] == [
        (SHA_A, "", "r1"), (SHA_B, "arm", "r2"),
    ]  # fmt: skip
    windows.add([ServedWindow("m", "2", SHA_B, requests=3, role="arm")])
    windows.add([ServedWindow("m", "2", SHA_B, requests=4)])
    found = windows.flush(2, [ServedModel("m", "2", SHA_B, "r3")], None)
    assert sorted((it.role, it.requests, it.rollout_id) for it in found) == [
        ("", 4, "r3"), ("arm", 3, "r3"),
    ]  # fmt: skip


def test_windows_of_different_roles_do_not_add_up():
    with pytest.raises(ValueError, match="do not add up"):
        merge_windows(window(), window(role="arm"))


@pytest.mark.parametrize(
    ("field", "most"), [("output_counts", MAX_OUTPUTS), ("counters", MAX_COUNTERS + 1)]
)
def test_names_are_bounded_and_nothing_is_lost(field, most):
    counts = {f"name {number}": 2 for number in range(3 * most)}
    older = window(**{field: dict(list(counts.items())[: most - 1])})
    newer = window(**{field: dict(list(counts.items())[most - 1 :][: most - 1])})
    merged = getattr(merge_windows(older, newer), field)
    assert len(merged) == most
    assert sum(merged.values()) == 2 * 2 * (most - 1)
    assert merged[OTHER] == 2 * (most - 1)


def test_counts_end_where_the_fleet_takes_no_more():
    large = window(requests=MAX_COUNT - 1, counters={"a": MAX_COUNT - 1})
    merged = merge_windows(large, large)
    assert (merged.requests, merged.counters["a"]) == (MAX_COUNT, MAX_COUNT)


def test_a_version_that_only_dropped_or_was_only_counted_is_reported():
    windows = WindowAccumulator(0)
    windows.add([ServedWindow("m", "1", SHA_A, shadow_dropped=1, role="shadow")])
    windows.add([ServedWindow("m", "1", SHA_B, counters={"rescans": 2})])
    assert len(windows.flush(1, [], None)) == 2
