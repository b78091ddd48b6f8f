"""Whether two versions say the same: by label, exactly, or within the tolerance of the golden cases."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agent.bundle import GoldenCase, GoldenOutput, GoldenTensor, Manifest, TensorSpec
from agent.runtime.agreement import Agreement
from tests.support.onnx_models import BundleMaker

LABELS = ("cat", "dog", "owl")
SCORES = TensorSpec("y", "FP32", (-1, 3), labels=LABELS)
CLASSES = TensorSpec("y", "INT64", (-1,), labels=LABELS)
VALUES = TensorSpec("y", "FP32", (-1, 3))
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return BundleMaker().write(tmp_path_factory.mktemp("bundles") / "b").manifest


def array(spec: TensorSpec, rows: Any) -> Any:
    kind = {"INT64": np.int64, "BYTES": object, "BOOL": np.bool_, "FP64": np.float64}
    return np.asarray(rows, kind.get(spec.dtype, np.float32))


@pytest.mark.parametrize(
    ("spec", "active", "other", "same"),
    [
        (SCORES, [[0.1, 0.7, 0.2]], [[0.3, 0.4, 0.3]], True),
        (SCORES, [[0.1, 0.7, 0.2]], [[0.5, 0.4, 0.1]], False),
        (SCORES, [[0, 1, 0], [1, 0, 0]], [[0, 9, 0], [0, 1, 0]], False),
        (SCORES, [[NAN, 1, 0]], [[NAN, 0, 1]], True),
        (SCORES, [[NAN, 1, 0]], [[0, 1, 0]], False),
        (SCORES, [[NAN, 1, 0], [0, 1, 0]], [[NAN, 0, 1], [1, 0, 0]], False),
        (SCORES, [[0, INF, 0]], [[0, 1, 0]], True),
        (SCORES, [[0, 1, 0]], [[0, 1, 0], [0, 1, 0]], False),
        (CLASSES, [1, 2], [1, 2], True),
        (CLASSES, [1, 2], [1, 0], False),
        (TensorSpec("y", "BYTES", (-1,)), ["a", "b"], ["a", "b"], True),
        (TensorSpec("y", "BYTES", (-1,)), ["a", "b"], ["a", "c"], False),
        (TensorSpec("y", "BOOL", (-1,)), [True], [False], False),
        (VALUES, [[1.0, 2.0, 0.0]], [[1.0009, 2.0, 0.0001]], True),
        (VALUES, [[1.0, 2.0, 0.0]], [[1.0, 2.0, 0.0002]], False),
        (VALUES, [[1.0, 2.0, 3.0]], [[1.0, 2.1, 3.0]], False),
        (VALUES, [[NAN, INF, -INF]], [[NAN, INF, -INF]], True),
        (VALUES, [[NAN, INF, 1.0]], [[1.0, INF, 1.0]], False),
        (VALUES, [[INF, 1.0, 1.0]], [[-INF, 1.0, 1.0]], False),
    ],
)
def test_one_output(
    manifest: Manifest, spec: TensorSpec, active: Any, other: Any, same: bool
) -> None:
    both = replace(manifest, outputs=(spec,), golden=())
    for one, two in ((active, other), (other, active)):
        found = Agreement(both, both).difference({"y": array(spec, one)}, {"y": array(spec, two)})
        assert found == ("" if same else "y")


def golden(atol: float, rtol: float) -> GoldenCase:
    tensor = GoldenTensor("f", "FP32", (1, 3))
    return GoldenCase("c", (), (GoldenOutput("y", tensor, atol, rtol),))


@pytest.mark.parametrize(
    ("active", "other", "same"),
    [
        ((), (), False),
        ((golden(0.1, 0),), (), True),
        ((golden(0.1, 0),), (golden(0.01, 0),), False),
        ((), (golden(0.01, 0), golden(0.0, 0.1)), True),
    ],
)
def test_the_golden_tolerance_counts_the_others_first(
    manifest: Manifest, active: Any, other: Any, same: bool
) -> None:
    base = replace(manifest, outputs=(VALUES,))
    agreement = Agreement(replace(base, golden=active), replace(base, golden=other))
    one, two = array(VALUES, [[1.0, 1.0, 1.0]]), array(VALUES, [[1.0, 1.0, 1.05]])
    assert agreement.difference({"y": one}, {"y": two}) == ("" if same else "y")


@pytest.mark.parametrize(
    ("active", "other", "one", "two", "same"),
    [
        (SCORES, replace(SCORES, labels=("dog", "cat", "owl")), [[0, 1, 0]], [[1, 0, 0]], True),
        (SCORES, replace(SCORES, labels=("dog", "cat", "owl")), [[0, 1, 0]], [[0, 1, 0]], False),
        (CLASSES, replace(CLASSES, labels=("dog", "cat")), [1], [0], True),
        (CLASSES, replace(CLASSES, labels=("dog", "cat")), [2], [2], False),
        (CLASSES, replace(CLASSES, dtype="INT32"), [2], [2], True),
        (VALUES, replace(VALUES, dtype="FP64"), [[1, 2, 3]], [[1, 2, 3]], True),
        (CLASSES, replace(VALUES, shape=(-1,)), [2], [2.0], False),
        (CLASSES, replace(CLASSES, dtype="BYTES"), [2], ["owl"], False),
    ],
)
def test_contracts_that_changed(
    manifest: Manifest, active: TensorSpec, other: TensorSpec, one: Any, two: Any, same: bool
) -> None:
    agreement = Agreement(
        replace(manifest, outputs=(active,), golden=()),
        replace(manifest, outputs=(other,), golden=()),
    )
    found = agreement.difference({"y": array(active, one)}, {"y": array(other, two)})
    assert found == ("" if same else "y")


def test_the_first_output_that_differs_is_named_and_one_that_is_gone_differs(
    manifest: Manifest,
) -> None:
    z = replace(CLASSES, name="z")
    outputs: Mapping[str, Any] = {"y": array(CLASSES, [1]), "z": array(z, [1])}
    active = replace(manifest, outputs=(CLASSES, z), golden=())
    assert Agreement(active, active).difference(outputs, {**outputs, "z": array(z, [2])}) == "z"
    assert (
        Agreement(active, replace(active, outputs=(CLASSES,))).difference(outputs, outputs) == "z"
    )
    assert Agreement(replace(active, outputs=(CLASSES,)), active).difference(outputs, outputs) == ""
