"""Golden cases: tolerance, NaN, text, and files that are not what the manifest says."""

from pathlib import Path

import numpy as np
import pytest

from agent.bundle import GoldenOutput, GoldenTensor, TensorSpec
from agent.runtime.dtypes import Array
from agent.runtime.errors import ModelLoadError
from agent.runtime.golden import compare, run_case
from agent.runtime.pipeline import Pipeline
from tests.support.onnx_models import BundleMaker, scale_bundle

NAN, INF = float("nan"), float("inf")


def output(atol: float = 0.1, rtol: float = 0.0) -> GoldenOutput:
    return GoldenOutput("y", GoldenTensor("y.bin", "FP32", (1,)), atol, rtol)


def f32(*values: float) -> Array:
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize(
    ("expected", "got", "said"),
    [
        (f32(1, 2), f32(1.05, 2), ""),
        (f32(1, 2), f32(1.2, 2), "1 of 2 values are outside the tolerance"),
        (f32(NAN, INF), f32(NAN, INF), ""),
        (f32(1, 2), f32(NAN, 2), "NaN or infinity came out"),
        (f32(NAN), f32(1), "1 of 1 values are outside"),
        (f32(1, 2), f32(1), "expected FP32 of shape [2], got FP32 of shape [1]"),
        (f32(1), np.array([1.0]), "expected FP32 of shape [1], got FP64 of shape [1]"),
        (np.array([7]), np.array([7]), ""),
        (np.array([7]), np.array([8]), "largest difference 1"),
        (np.array([True]), np.array([False]), "largest difference 1"),
        (np.array([2**63 - 1]), np.array([2**63 - 1]), ""),
        (np.array(["a"], object), np.array(["a"], object), ""),
        (np.array(["a"], object), np.array(["b"], object), "expected 'a', got 'b'"),
    ],
)
def test_comparing(expected: Array, got: Array, said: str) -> None:
    _, problem, non_finite = compare(output(), expected, got)
    assert (said in problem) if said else (problem == "")
    assert non_finite is ("NaN or infinity" in problem)


def test_relative_tolerance_counts_from_the_expected_value() -> None:
    assert compare(output(0.0, 0.1), f32(100), f32(109))[1] == ""
    assert compare(output(0.0, 0.1), f32(100), f32(111))[1] != ""


def test_a_wrong_output_names_case_and_tensor(tmp_path: Path) -> None:
    x = np.ones((1, 4), np.float32)
    made = BundleMaker(golden=[({"x": x}, {"y": x * 2.5})]).write(tmp_path / "b")
    pipeline = Pipeline.load(made.path, made.manifest)
    result = run_case(made.path, made.manifest, made.manifest.golden[0], pipeline.run)
    assert "golden case 'case-0', output 'y'" in result.problem
    assert result.max_abs_diff == pytest.approx(0.5)


def test_a_short_golden_file_is_a_bad_bundle(tmp_path: Path) -> None:
    made = scale_bundle(tmp_path / "b")
    (made.path / "golden/0-in-x.bin").write_bytes(b"\0")
    pipeline = Pipeline.load(made.path, made.manifest)
    with pytest.raises(ModelLoadError, match=r"golden/0-in-x.bin.*takes 16 bytes, got 1"):
        run_case(made.path, made.manifest, made.manifest.golden[0], pipeline.run)


def test_a_golden_input_outside_the_contract_is_a_bad_bundle(tmp_path: Path) -> None:
    x = np.full((1, 4), 9, np.float32)
    spec = TensorSpec("x", "FP32", (-1, 4), maximum=1.0)
    made = BundleMaker(inputs=[spec], golden=[({"x": x}, {"y": x})]).write(tmp_path / "b")
    pipeline = Pipeline.load(made.path, made.manifest)
    with pytest.raises(ModelLoadError, match="golden case 'case-0' breaks the contract"):
        run_case(made.path, made.manifest, made.manifest.golden[0], pipeline.run)
