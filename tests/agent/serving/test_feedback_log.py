"""Feedback: which output is judged, how, and what is forgotten; over values alone."""

import math

import numpy as np
import pytest

from agent.bundle import TensorSpec
from agent.runtime.errors import InputContractError
from agent.serving.feedback import (
    FeedbackCounts,
    FeedbackLimits,
    FeedbackLog,
    Outcome,
    Truth,
    Version,
    judged_output,
    predictions_in,
)
from tests.support.onnx_models import BundleMaker

ONE, TWO = Version("m", "1", "1" * 64), Version("m", "2", "2" * 64)
LABELS = ("cat", "dog", "owl")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log(clock):
    return FeedbackLog(FeedbackLimits(max_requests=3, max_age_s=100, max_rows=2), clock)


def test_labels_are_right_or_wrong(log):
    log.remember(ONE, "a", ["cat", "dog"])
    assert log.judge(TWO, Truth("a", "cat")) is Outcome.CORRECT
    assert log.judge(TWO, Truth("a", "cat", row=1)) is Outcome.WRONG
    # It is the version that answered which is counted, although another is active.
    assert log.drain() == {ONE: FeedbackCounts(2, 1)}
    assert log.drain() == {}


def test_values_are_measured(log):
    log.remember(ONE, "a", [2.0])
    log.remember(ONE, "b", [math.nan])
    log.remember(ONE, "c", [7.0])
    assert log.judge(ONE, Truth("a", value=2.5)) is Outcome.MEASURED
    assert log.judge(ONE, Truth("b", value=-3.0)) is Outcome.MEASURED
    assert log.judge(ONE, Truth("c", value=7.0)) is Outcome.MEASURED
    assert log.drain() == {ONE: FeedbackCounts(3, 1, 3.5)}


def test_each_row_is_judged_once(log):
    log.remember(ONE, "a", ["cat"])
    log.judge(ONE, Truth("a", "cat"))
    assert log.judge(ONE, Truth("a", "cat")) is Outcome.UNKNOWN
    assert log.judge(ONE, Truth("never", "cat")) is Outcome.UNKNOWN
    assert log.drain() == {ONE: FeedbackCounts(1, 1, feedback_unknown=2)}


def test_a_row_beyond_the_answer_or_the_bound_is_unknown(log):
    log.remember(ONE, "a", ["cat"] * 5)
    assert log.judge(ONE, Truth("a", "cat", row=2)) is Outcome.UNKNOWN
    assert log.judge(ONE, Truth("a", "cat", row=-1)) is Outcome.UNKNOWN
    assert log.judge(ONE, Truth("a", "cat", row=1)) is Outcome.CORRECT


def test_late_feedback_is_charged_to_the_active_version(log, clock):
    log.remember(ONE, "a", ["cat"])
    clock.now = 100.5
    assert log.judge(TWO, Truth("a", "cat")) is Outcome.LATE
    assert log.judge(TWO, Truth("a", "cat")) is Outcome.UNKNOWN
    assert log.drain() == {TWO: FeedbackCounts(feedback_unknown=2)}


def test_the_oldest_requests_are_forgotten_first(log):
    for name in "abcd":
        log.remember(ONE, name, ["cat"])
    assert log.judge(ONE, Truth("a", "cat")) is Outcome.UNKNOWN
    assert log.judge(ONE, Truth("b", "cat")) is Outcome.CORRECT


def test_an_id_used_again_means_the_newer_request(log):
    log.remember(ONE, "a", ["cat"])
    log.remember(TWO, "a", ["dog"])
    assert log.judge(TWO, Truth("a", "dog")) is Outcome.CORRECT
    assert log.drain() == {TWO: FeedbackCounts(1, 1)}


def test_models_do_not_share_ids(log):
    log.remember(Version("n", "1", "3" * 64), "a", ["cat"])
    assert log.judge(ONE, Truth("a", "cat")) is Outcome.UNKNOWN


def test_the_wrong_kind_of_truth_is_refused_and_not_counted(log):
    log.remember(ONE, "a", ["cat"])
    log.remember(ONE, "b", [1.0])
    with pytest.raises(InputContractError, match=r"answered with a label .'cat'.: give 'label'"):
        log.judge(ONE, Truth("a", value=1.0))
    with pytest.raises(InputContractError, match="answered with a number: give 'value'"):
        log.judge(ONE, Truth("b", "cat"))
    assert log.drain() == {}
    assert log.judge(ONE, Truth("a", "cat")) is Outcome.CORRECT


@pytest.mark.parametrize(
    ("spec", "array", "said"),
    [
        (TensorSpec("y", "FP32", (-1, 3), labels=LABELS), [[0, 2, 1], [9, 0, 0]], ["dog", "cat"]),
        (TensorSpec("y", "FP32", (3,), labels=LABELS), [[0, 2, 1]], ["dog"]),
        (TensorSpec("y", "INT64", (-1,), labels=LABELS), [2, 0], ["owl", "cat"]),
        (TensorSpec("y", "INT64", (-1, 1), labels=LABELS), [[2], [7]], ["owl", "7"]),
        (TensorSpec("y", "FP32", (-1, 1), labels=LABELS), [[math.nan]], ["nan"]),
        (TensorSpec("y", "FP32", (-1, 1)), [[1.5], [2.5]], [1.5, 2.5]),
        (TensorSpec("y", "BOOL", (-1,)), [True, False], [1.0, 0.0]),
        (TensorSpec("y", "FP32", ()), 3.0, [3.0]),
        (TensorSpec("y", "FP32", (-1, 3)), [[1, 2, 3]], []),
        (TensorSpec("y", "FP32", (-1, 3), labels=LABELS), np.zeros((0, 3)), []),
    ],
)
def test_what_an_output_says(spec, array, said):
    kind = {"INT64": np.int64, "BOOL": np.bool_}.get(spec.dtype, np.float32)
    assert predictions_in(spec, np.asarray(array, kind)) == said


def test_text_outputs_are_labels():
    spec = TensorSpec("y", "BYTES", (-1,))
    array = np.array(["cat", b"dog", "x" * 999], dtype=object)
    assert predictions_in(spec, array) == ["cat", "dog", "x" * 256]


@pytest.mark.parametrize(
    ("outputs", "parameters", "name"),
    [
        ([TensorSpec("a", "FP32", (-1, 4)), TensorSpec("b", "FP32", (-1, 3), labels=LABELS)], {}, "b"),
        ([TensorSpec("a", "FP32", (-1, 4)), TensorSpec("b", "FP32", (-1, 1))], {}, "b"),
        ([TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,))],
         {"feedback_output": "b"}, "b"),
        ([TensorSpec("a", "FP32", (-1,))], {"feedback_output": "c"}, None),
        ([TensorSpec("a", "FP32", (-1, 4))], {}, None),
    ],
)  # fmt: skip
def test_which_output_is_judged(tmp_path, outputs, parameters, name):
    from dataclasses import replace

    manifest = BundleMaker().write(tmp_path / "b").manifest
    manifest = replace(manifest, outputs=tuple(outputs), parameters=parameters)
    spec = judged_output(manifest)
    assert (spec.name if spec else None) == name


def test_which_version_answered_is_known_until_the_request_is_forgotten(log, clock):
    arm = Version("m", "2", "2" * 64, "arm")
    log.remember(ONE, "a", [])
    log.remember(arm, "b", ["cat"])
    assert log.judge(ONE, Truth("a", "cat")) is Outcome.UNKNOWN
    assert log.judge(ONE, Truth("b", "cat")) is Outcome.CORRECT
    assert log.judge(ONE, Truth("b", "cat")) is Outcome.UNKNOWN
    assert [log.answered_by("m", it) for it in ("a", "b", "c")] == [ONE, arm, None]
    assert log.answered_by("n", "a") is None
    clock.now = 101.0
    assert log.answered_by("m", "b") is None
