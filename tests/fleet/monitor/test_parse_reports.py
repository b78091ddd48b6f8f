"""What a device may say, and what is refused with which reason."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.monitor.reports import Kind, ReportRefusedError, parse_report
from protos import report_pb2
from tests.support.reports import DIGEST, event, inventory, window


def test_a_window_becomes_a_row() -> None:
    parsed = parse_report(window(seq=7), "d1")
    assert (parsed.kind, parsed.device_id, parsed.boot_id, parsed.seq) == (
        Kind.WINDOW, "d1", "b1", 7,
    )  # fmt: skip
    assert parsed.row["requests"] == 100
    assert parsed.row["error_kinds"] == {"runtime": 1}
    assert parsed.row["temperature_c"] is None
    assert report_pb2.Histogram.FromString(parsed.row["latency"]).counts == [50, 50]


def test_an_event_becomes_a_row_in_lower_case_words() -> None:
    parsed = parse_report(event(phase="commit", outcome="committed", measures={"a": 1.5}), "d1")
    assert parsed.row["phase"] == "commit"
    assert parsed.row["outcome"] == "committed"
    assert parsed.row["measures"] == {"a": 1.5}
    assert parse_report(event(), "d1").row["outcome"] == ""


def test_an_inventory_becomes_a_row_and_its_models() -> None:
    parsed = parse_report(inventory(), "d1")
    assert parsed.row["labels"] == {"site": "lab"}
    assert [one["model"] for one in parsed.active] == ["digits"]


def test_what_a_device_refused_of_the_metadata_is_kept_within_limits() -> None:
    assert parse_report(inventory(), "d1").row["trust"] == {}
    trust = report_pb2.TrustStatus(
        refusal_code="rollback",
        refusal="r\0" * 600,
        refused_unix_ms=5000,
        refused=3,
        refusing=True,
        notices=[f"n{number}" for number in range(20)],
    )
    kept = parse_report(inventory(trust=trust), "d1").row["trust"]
    assert (kept["refusal_code"], kept["refused_s"], kept["refused"]) == ("rollback", 5.0, 3)
    assert kept["refusing"]
    assert kept["refusal"] == "r" * 250
    assert len(kept["notices"]) == 8


REFUSED: list[tuple[str, report_pb2.Report, str]] = [
    ("device_id", window(device="d2"), "came from d1 but says 'd2'"),
    ("boot_id", window(boot=""), "no boot id"),
    ("boot_id", window(boot="a b"), "no boot id"),
    ("empty", report_pb2.Report(device_id="d1", boot_id="b", seq=1), "no body"),
    ("missing", window(model=""), "no model"),
    ("text", window(version="v" * 65), "longer than 64"),
    ("text", window(model="a\0b"), "model"),
    ("digest", window(manifest_sha256="zz"), "no sha256"),
    ("time", window(end_unix_ms=1), "before its start"),
    ("range", window(start_unix_ms=-5), "start_unix_ms = -5"),
    ("range", window(requests=2**64 - 1), "requests = 18446744073709551615"),
    ("counts", window(requests=1, failures=2), "failures = 2 of requests = 1"),
    ("counts", window(feedback_count=1, feedback_correct=2), "feedback_correct = 2 of feedback_count = 1"),
    ("counts", window(shadow_compared=1, shadow_disagreed=2), "shadow_disagreed = 2"),
    ("counts", window(confidence_count=1, low_confidence=2), "low_confidence = 2"),
    ("counts", window(counters={str(n): 1 for n in range(65)}), "65 counters"),
    ("role", window(role="king"), "'king' is no role"),
    ("range", window(feedback_abs_error_sum=math.nan), "feedback_abs_error_sum"),
    ("counts", window(error_kinds={str(n): 1 for n in range(65)}), "65 kinds"),
    ("latency", window(latency_s=report_pb2.Histogram(counts=[1] * 1025)), "1025 buckets"),
    ("range", window(latency_s=report_pb2.Histogram(max=math.nan)), "latency max"),
    ("range", window(resources=report_pb2.Resources(cpu_percent=math.inf)), "cpu_percent"),
    ("phase", report_pb2.Report(
        device_id="d1", boot_id="b", seq=1,
        deployment=report_pb2.DeploymentEvent(
            deployment_id="x", rollout_id="r1", model="m", phase=77
        )), "77 is unknown"),
    ("phase", event(phase="unspecified"), "names no phase"),
    ("missing", event(rollout_id=""), "no rollout_id"),
    ("labels", inventory(labels={f"k{n}": "v" for n in range(65)}), "65 labels"),
    ("text", inventory(labels={"k": "v" * 257}), "longer than 256"),
    ("text", inventory(trust=report_pb2.TrustStatus(refusal_code="c" * 65)), "longer than 64"),
    ("range", inventory(trust=report_pb2.TrustStatus(refused_unix_ms=-1)), "refused_unix_ms"),
    ("range", inventory(at_ms=-1), "created_unix_ms"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "report", "text"), REFUSED)
def test_what_cannot_be_true_is_refused_with_its_reason(
    code: str, report: report_pb2.Report, text: str
) -> None:
    with pytest.raises(ReportRefusedError, match=text) as caught:
        parse_report(report, "d1")
    assert caught.value.code == code


def test_feedback_and_notices_become_columns() -> None:
    said = window(
        feedback_count=3, feedback_correct=1, feedback_abs_error_sum=2.5, feedback_unknown=4,
        notices=["n" * 999, *("abcdefghi")],
    )  # fmt: skip
    row = parse_report(said, "d1").row
    assert (row["feedback_count"], row["feedback_correct"], row["feedback_unknown"]) == (3, 1, 4)
    assert row["feedback_abs_error_sum"] == 2.5
    assert row["notices"] == ["n" * 256, *"abcdefg"]


def test_a_long_reason_is_cut_and_not_refused() -> None:
    assert len(parse_report(event(reason="x" * 5000), "d1").row["reason"]) == 2000


def test_measures_that_are_no_numbers_are_left_out() -> None:
    row = parse_report(event(measures={"a": math.nan, "b": math.inf, "c": 1.0}), "d1").row
    assert row["measures"] == {"c": 1.0}


@given(st.binary(max_size=400))
def test_any_bytes_are_parsed_or_refused(raw: bytes) -> None:
    """Whatever decodes as a report is stored safely or refused; nothing else happens."""
    report = report_pb2.Report()
    try:
        report.ParseFromString(raw)
    except Exception:  # noqa: BLE001 (the codec's own refusals are tested where they are caught)
        return
    try:
        row: Any = parse_report(report, "d1").row
    except ReportRefusedError:
        return
    assert all(not isinstance(v, int) or -(2**63) <= v < 2**63 for v in row.values())


@given(st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1), st.text(max_size=80))
def test_numbers_and_texts_of_every_size(number: int, time_ms: int, text: str) -> None:
    report = window(requests=number, start_unix_ms=time_ms, rollout_id=text)
    try:
        row = parse_report(report, "d1").row
    except ReportRefusedError:
        return
    assert row["manifest_sha256"] == DIGEST
    assert 0 <= row["requests"] < 2**63
    assert len(row["rollout_id"]) <= 64
