"""What is counted of an answer: labels, bins, and how sure the model is."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.bundle import Manifest, Observe, TensorSpec
from agent.runtime.counters import MAX_OUTPUTS, OTHER, Seen, VersionCounters
from agent.runtime.observer import MAX_LOOKED, Observer, bin_names, observer_of
from tests.support.onnx_models import BundleMaker

LABELS = ("cat", "dog", "owl")
SCORES = TensorSpec("y", "FP32", (-1, 3), labels=LABELS)
CLASSES = TensorSpec("y", "INT64", (-1,), labels=LABELS)
VALUES = TensorSpec("y", "FP32", (-1,))
TEXT = TensorSpec("y", "BYTES", (-1,))
NAN = float("nan")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return BundleMaker().write(tmp_path_factory.mktemp("bundles") / "b").manifest


def observer(manifest: Manifest, observe: Observe | None, *outputs: TensorSpec) -> Observer:
    found = observer_of(replace(manifest, outputs=outputs, observe=observe))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("spec", "bins", "array", "counts"),
    [
        (SCORES, (), np.float32([[0, 2, 1]]), {"dog": 1}),
        (SCORES, (), np.float32([[0, 2, 1], [9, 0, 0], [0, 9, 0]]), {"dog": 2, "cat": 1}),
        (SCORES, (), np.float32([[0, NAN, 1]]), {"nan": 1}),
        (SCORES, (), np.float32([[0, NAN, 1], [0, 1, 0]]), {"nan": 1, "dog": 1}),
        (SCORES, (), np.float32([[NAN, 1, 0]] * 2), {"nan": 2}),
        (SCORES, (), np.zeros((0, 3), np.float32), {}),
        (SCORES, (), np.zeros((1, 4), np.float32), {}),
        (CLASSES, (), np.int64([2]), {"owl": 1}),
        (CLASSES, (), np.int64([3]), {OTHER: 1}),
        (CLASSES, (), np.int64([-1]), {OTHER: 1}),
        (CLASSES, (), np.int64([2, 0, 2, 7, -1]), {"owl": 2, "cat": 1, OTHER: 2}),
        (CLASSES, (), np.zeros(0, np.int64), {}),
        (replace(CLASSES, labels=()), (), np.int64([7]), {"7": 1}),
        (replace(CLASSES, labels=()), (), np.int64([7, -1, 7]), {"7": 2, "-1": 1}),
        (TEXT, (), np.array(["a\0\n b", "a b", ""], object), {"a b": 2, "(empty)": 1}),
        (TEXT, (), np.array(["x" * 99], object), {"x" * 61 + "...": 1}),
        (replace(TEXT, labels=LABELS), (), np.array(["cat", "cow"], object), {"cat": 1, OTHER: 1}),
        (VALUES, (0.0, 1.5), np.float32([-1]), {"< 0": 1}),
        (VALUES, (0.0, 1.5), np.float32([0, 1, 1.5, NAN]), {"0 to 1.5": 2, ">= 1.5": 1, "nan": 1}),
        (VALUES, (0.0,), np.float32([np.inf, -np.inf]), {">= 0": 1, "< 0": 1}),
        (CLASSES, (1.0,), np.int64([0, 1, 2]), {"< 1": 1, ">= 1": 2}),
    ],
)
def test_what_is_counted(
    manifest: Manifest, spec: TensorSpec, bins: tuple[float, ...], array: Any, counts: Any
) -> None:
    seen = observer(manifest, Observe("y", bins), spec).look({"y": array})
    assert (dict(seen.outputs), seen.confidences, seen.low) == (counts, 0, 0)


@pytest.mark.parametrize(
    ("spec", "array", "rows", "low"),
    [
        (SCORES, np.float32([[0.1, 0.6, 0.3]]), 1, 0),
        (SCORES, np.float32([[0.1, 0.5, 0.4]]), 1, 1),
        (SCORES, np.float32([[0.1, 0.9, 0.0], [0.5, 0.4, 0.1], [0.2, NAN, 0.9]]), 3, 2),
        (SCORES, np.float32([[NAN, 0.9, 0.1]]), 1, 1),
        (SCORES, np.zeros((0, 3), np.float32), 0, 0),
        (replace(SCORES, labels=()), np.float32([[0.9, 0.1, 0.0], [0.1, 0.1, 0.1]]), 2, 1),
        (VALUES, np.float32([0.9, 0.1, 0.2]), 3, 2),
        (replace(SCORES, shape=(3,)), np.float32([0.9, 0.1, 0.2]), 1, 0),
    ],
)
def test_how_sure_it_is(
    manifest: Manifest, spec: TensorSpec, array: Any, rows: int, low: int
) -> None:
    observe = Observe(confidence="y", low_confidence=0.6)
    assert observer(manifest, observe, spec).look({"y": array}) == Seen({}, rows, low)


def test_label_and_confidence_may_be_two_outputs(manifest: Manifest) -> None:
    scores = replace(SCORES, name="s", labels=())
    look = observer(manifest, Observe("y", (), "s", 0.6), CLASSES, scores).look
    assert look({"y": np.int64([1]), "s": np.float32([[0.2, 0.5, 0.3]])}) == Seen({"dog": 1}, 1, 1)


@pytest.mark.parametrize(
    ("outputs", "counted"),
    [
        ([CLASSES], "y"),
        ([replace(CLASSES, labels=(), shape=(-1, 1)), replace(SCORES, name="s")], "y"),
        ([replace(CLASSES, shape=())], "y"),
        ([replace(TEXT, labels=LABELS)], "y"),
        ([TEXT], None),  # what a model reads stays on the device unless its bundle says otherwise
        ([CLASSES, replace(CLASSES, name="z")], None),
        ([replace(CLASSES, shape=(-1, 2))], None),
        ([SCORES], None),
        ([TensorSpec("y", "BOOL", (-1,))], None),
    ],
)
def test_what_is_counted_of_a_bundle_that_says_nothing(
    manifest: Manifest, outputs: list[TensorSpec], counted: str | None
) -> None:
    found = observer_of(replace(manifest, outputs=tuple(outputs)))
    assert (found is not None) == (counted is not None)


def test_a_large_answer_is_looked_at_in_part(manifest: Manifest) -> None:
    array = np.arange(10 * MAX_LOOKED + 1, dtype=np.int64) % 3
    seen = observer(manifest, Observe("y"), CLASSES).look({"y": array})
    assert MAX_LOOKED * 0.9 < sum(seen.outputs.values()) <= MAX_LOOKED
    assert set(seen.outputs) == set(LABELS)


edges = st.lists(
    st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=6, unique_by=lambda it: f"{it:.6g}"
).map(sorted)


@given(edges, st.lists(st.floats(width=64), min_size=1, max_size=30))
@settings(max_examples=50)
def test_every_value_is_in_one_bin(edges: list[float], values: list[float]) -> None:
    maker = BundleMaker(outputs=[replace(VALUES, dtype="FP64")])
    manifest = Manifest(
        model="m", version="1", device_class="c", created_s=0, files=(), stages=(), inputs=(),
        outputs=tuple(maker.outputs),
    )  # fmt: skip
    names = bin_names(edges)
    expected = Counter(
        "nan" if math.isnan(value) else names[sum(edge <= value for edge in edges)]
        for value in values
    )
    look = Observer(manifest, Observe("y", tuple(edges))).look
    assert look({"y": np.array(values)}).outputs == dict(expected)


def test_names_of_one_window_are_bounded() -> None:
    counters = VersionCounters(1.0)
    for number in range(100):
        counters.answered(0.1, Seen({str(number): 2}, 3, 1))
    counts = counters.drain()
    assert len(counts.output_counts) == MAX_OUTPUTS
    assert (sum(counts.output_counts.values()), counts.output_counts["30"]) == (200, 2)
    assert counts.output_counts[OTHER] == 2 * (100 - MAX_OUTPUTS + 1)
    assert (counts.confidence_count, counts.low_confidence) == (300, 100)
    assert counters.drain().output_counts == {}
