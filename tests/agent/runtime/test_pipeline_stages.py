"""Pipelines: loading what fits, refusing what does not, running stages in order."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

from agent.bundle import Stage, TensorSpec
from agent.runtime.dtypes import NUMPY_OF
from agent.runtime.errors import InferenceError, ModelLoadError
from agent.runtime.pipeline import Pipeline, example_inputs
from tests.support.onnx_models import (
    BundleMaker,
    gather_model,
    identity_model,
    scale_bundle,
    scale_model,
)

ONE = np.ones((1, 4), np.float32)
ONNX_TYPES = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}  # fmt: skip


def load(folder: Path, **parts: Any) -> Pipeline:
    made = BundleMaker(**parts).write(folder)
    return Pipeline.load(made.path, made.manifest)


def test_stages_run_in_order(tmp_path: Path) -> None:
    pipeline = load(
        tmp_path / "b",
        models={"a.onnx": scale_model(2.0), "b.onnx": scale_model(5.0)},
        stages=[
            Stage("first", "a.onnx", (("x", "x"),), (("y", "middle"),)),
            Stage("second", "b.onnx", (("middle", "x"),), (("y", "y"),)),
        ],
    )
    outputs = pipeline.run({"x": ONE})
    assert list(outputs) == ["y"]
    assert np.array_equal(outputs["y"], ONE * 10)


@pytest.mark.parametrize("dtype", list(ONNX_TYPES))
def test_every_data_type_goes_through(tmp_path: Path, dtype: str) -> None:
    pipeline = load(
        tmp_path / "b",
        models={"model.onnx": identity_model(ONNX_TYPES[dtype])},
        inputs=[TensorSpec("x", dtype, (-1,))],
        outputs=[TensorSpec("y", dtype, (-1,))],
    )
    x = np.array(["a", "ö"], object) if dtype == "BYTES" else np.array([0, 1], NUMPY_OF[dtype])
    assert np.array_equal(pipeline.run({"x": x})["y"], x)
    assert pipeline.run(example_inputs(pipeline.manifest))["y"].shape == (1,)


STAGE = Stage("main", "model.onnx", (("x", "x"),), (("y", "y"),))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"models": {"model.onnx": b"not onnx"}}, "stage 'main': model.onnx cannot be loaded"),
        ({"models": {"model.onnx": b""}}, "stage 'main': model.onnx cannot be loaded"),
        ({"models": {"other.onnx": scale_model()}}, "stage 'main': model.onnx cannot be read"),
        (
            {"stages": [Stage("main", "model.onnx", (("x", "pixels"),), (("y", "y"),))]},
            "takes ['x'], the bundle feeds",
        ),
        (
            {"stages": [Stage("main", "model.onnx", (("x", "x"),), (("z", "y"),))]},
            "no output 'z'; it has ['y']",
        ),
        (
            {"stages": [Stage("main", "model.onnx", (("w", "x"),), (("y", "y"),))]},
            "'w' is no input and no earlier",
        ),
        ({"inputs": [TensorSpec("x", "FP64", (-1, 4))]}, "input 'x' takes FP32, 'x' is FP64"),
        (
            {"inputs": [TensorSpec("x", "FP32", (-1, 5))]},
            "does not allow all of the contract's [-1, 5]",
        ),
        (
            {"inputs": [TensorSpec("x", "FP32", (-1, -1))]},
            "does not allow all of the contract's [-1, -1]",
        ),
        ({"inputs": [TensorSpec("x", "FP32", (4,))]}, "does not allow all of the contract's [4]"),
        (
            {"outputs": [TensorSpec("y", "INT64", (-1, 4))]},
            "output 'y' is INT64 in the contract, but the stages make",
        ),
        (
            {"outputs": [TensorSpec("q", "FP32", (-1, 4))]},
            "output 'q' is FP32 in the contract, but the stages make n",
        ),
    ],
)
def test_what_does_not_fit_is_refused_while_loading(tmp_path: Path, parts: Any, said: str) -> None:
    with pytest.raises(ModelLoadError) as refused:
        load(tmp_path / "b", **parts)
    assert said in str(refused.value)


def test_links_are_refused(tmp_path: Path) -> None:
    made = scale_bundle(tmp_path / "b")
    (tmp_path / "outside.onnx").hardlink_to(made.path / "model.onnx")
    with pytest.raises(ModelLoadError, match="not a regular file with one link"):
        Pipeline.load(made.path, made.manifest)
    (made.path / "model.onnx").unlink()
    (made.path / "model.onnx").symlink_to(tmp_path / "outside.onnx")
    with pytest.raises(ModelLoadError, match="not a regular file with one link"):
        Pipeline.load(made.path, made.manifest)


def test_a_failing_run_names_the_stage_and_its_kind(tmp_path: Path) -> None:
    pipeline = load(
        tmp_path / "b",
        models={"model.onnx": gather_model()},
        stages=[Stage("look-up", "model.onnx", (("index", "index"),), (("y", "y"),))],
        inputs=[TensorSpec("index", "INT64", (-1,))],
        outputs=[TensorSpec("y", "FP32", (-1,))],
    )
    assert pipeline.run({"index": np.array([3])})["y"] == [3.0]
    with pytest.raises(InferenceError, match="stage 'look-up' failed") as failed:
        pipeline.run({"index": np.array([4])})
    assert failed.value.kind in {"runtime", "invalid_argument"}
    assert "\n" not in str(failed.value)


def test_a_run_can_be_ended_from_outside(tmp_path: Path) -> None:
    made = scale_bundle(tmp_path / "b")
    pipeline = Pipeline.load(made.path, made.manifest)
    options = ort.RunOptions()
    options.terminate = True
    with pytest.raises(InferenceError) as ended:
        pipeline.run({"x": ONE}, options)
    assert ended.value.kind == "timeout"


def test_examples_keep_the_contract() -> None:
    manifest = BundleMaker(
        inputs=[
            TensorSpec("low", "FP32", (-1, 2), minimum=3.0, maximum=9.0),
            TensorSpec("high", "INT8", (1,), minimum=-9.0, maximum=-3.0),
            TensorSpec("word", "BYTES", (-1,), labels=("yes", "no")),
        ]
    )
    examples = example_inputs(manifest)  # type: ignore[arg-type]
    assert np.array_equal(examples["low"], np.full((1, 2), 3.0, np.float32))
    assert examples["high"] == [-3]
    assert list(examples["word"]) == ["yes"]
