"""Bundle projects for handwritten digits, trained on the spot on scikit-learn's real scans (1,797 images of 8x8).

Three versions, each an honest mistake or its repair:

- ``FEW_ROWS``: logistic regression trained on 60 images;
- ``ALL_ROWS``: the same on every training image, clearly better;
- ``FORGOTTEN_SCALING``: the weights of ``ALL_ROWS`` exported without the standardisation in front of them. Its only
  golden case is a blank image recorded from the exported pipeline itself, as a hasty smoke test is, so it passes:
  only the range that the contract states for the scores tells, once real images arrive.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fleet.errors import ConfigError

__all__ = ["MODEL", "DigitsSplit", "Variant", "load_split", "write_project"]

MODEL: Final = "digits"
IMAGE_PIXELS: Final = 64
_OPSET: Final = 17
_SEED: Final = 0

Array = npt.NDArray[Any]


class Variant(Enum):
    """Which of the three versions; the value is the number of training rows, or None for all."""

    FEW_ROWS = "few rows"
    ALL_ROWS = "all rows"
    FORGOTTEN_SCALING = "forgotten scaling"


@dataclass(frozen=True, slots=True)
class DigitsSplit:
    """Images are FP32 ``[n, 64]`` with pixel values 0..16; labels are INT64 ``[n]`` in 0..9."""

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array


def load_split() -> DigitsSplit:
    """Three fifths to train on, two fifths that no model has seen; the same split at every call.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ConfigError(
            "training the demo's model needs scikit-learn: pip install 'muster-edge[demo]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images.astype(np.float32),
        labels.astype(np.int64),
        test_size=0.4,
        random_state=_SEED,
        stratify=labels,
    )
    return DigitsSplit(train_x, train_y, test_x, test_y)


@dataclass(frozen=True, slots=True)
class _Trained:
    classifier: Any
    mean: Array  # per pixel, FP32 [64]
    deviation: Array  # per pixel, FP32 [64], 1 where a pixel never changes
    score_limit: float  # no training image scores further from zero than this


def _train(split: DigitsSplit, rows: int | None) -> _Trained:
    from sklearn.linear_model import LogisticRegression

    mean = split.train_images.mean(axis=0)
    deviation = split.train_images.std(axis=0)
    deviation[deviation == 0] = 1.0
    scaled = (split.train_images - mean) / deviation
    classifier = LogisticRegression(max_iter=500)
    classifier.fit(scaled[:rows], split.train_labels[:rows])
    scores = classifier.decision_function(scaled)
    # Half as much again as anything seen in training is room enough for images of the same kind.
    return _Trained(classifier, mean, deviation, float(np.ceil(1.5 * np.abs(scores).max())))


def write_project(folder: Path, version: str, variant: Variant, split: DigitsSplit) -> Path:
    """Train a variant and write its bundle project (``muster.toml``, stages, golden cases) into ``folder``."""
    trained = _train(split, 60 if variant is Variant.FEW_ROWS else None)
    scaled = variant is not Variant.FORGOTTEN_SCALING
    folder.mkdir(parents=True, exist_ok=True)
    if scaled:
        (folder / "pre.onnx").write_bytes(_standardise_onnx(trained))
    (folder / "model.onnx").write_bytes(_classifier_onnx(trained))
    (folder / "post.onnx").write_bytes(_softmax_onnx())
    golden = _write_golden(folder, trained, split, scaled=scaled)
    (folder / "muster.toml").write_text(
        _muster_toml(version, trained, golden, scaled=scaled), encoding="utf-8"
    )
    return folder


def _write_golden(
    folder: Path, trained: _Trained, split: DigitsSplit, *, scaled: bool
) -> list[str]:
    """Images with the label and scores that scikit-learn itself gives; returns the cases' names."""
    (folder / "golden").mkdir(exist_ok=True)
    images = {f"digit-{n}": split.train_images[split.train_labels == n][:1] for n in (0, 3, 6, 9)}
    if not scaled:
        images = {"blank": np.zeros((1, IMAGE_PIXELS), dtype=np.float32)}
    for name, image in images.items():
        features = (image - trained.mean) / trained.deviation if scaled else image
        np.save(folder / "golden" / f"{name}-image.npy", image)
        label = trained.classifier.predict(features).astype(np.int64)
        scores = trained.classifier.decision_function(features).astype(np.float32)
        np.save(folder / "golden" / f"{name}-label.npy", label)
        np.save(folder / "golden" / f"{name}-scores.npy", scores)
    return list(images)


def _muster_toml(version: str, trained: _Trained, golden: list[str], *, scaled: bool) -> str:
    limit = trained.score_limit
    stages = ""
    if scaled:
        stages += '[[stage]]\nname = "pre"\nfile = "pre.onnx"\n\n'
    features = "features" if scaled else "image"
    stages += (
        f'[[stage]]\nname = "model"\nfile = "model.onnx"\ninputs = {{ features = "{features}" }}\n\n'
        '[[stage]]\nname = "post"\nfile = "post.onnx"\n\n'
    )
    cases = "".join(
        f'[[golden]]\nname = "{name}"\n'
        f'inputs = {{ image = "golden/{name}-image.npy" }}\n'
        f'outputs = {{ label = "golden/{name}-label.npy", scores = "golden/{name}-scores.npy" }}\n'
        "atol = 0.001\nrtol = 0.001\n\n"
        for name in golden
    )
    return (
        f'[bundle]\nmodel = "{MODEL}"\nversion = "{version}"\nclass = "edge"\n\n{stages}'
        '[[input]]\nname = "image"\ndtype = "FP32"\nshape = [-1, 64]\nrange = [0.0, 16.0]\n\n'
        '[[output]]\nname = "label"\ndtype = "INT64"\nshape = [-1]\nrange = [0, 9]\n\n'
        f'[[output]]\nname = "scores"\ndtype = "FP32"\nshape = [-1, 10]\nrange = [-{limit}, {limit}]\n\n'
        '[[output]]\nname = "probabilities"\ndtype = "FP32"\nshape = [-1, 10]\nrange = [0.0, 1.0]\n\n'
        f"{cases}"
        "[objectives]\nlatency_ms = 500.0\nmax_error_rate = 0.01\nmax_over_latency_rate = 0.2\n"
        "max_output_violation_rate = 0.02\nprobation_s = 3.0\nprobation_min_requests = 0\n\n"
        '[requires]\nclasses = ["edge"]\n'
    )


def _standardise_onnx(trained: _Trained) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", IMAGE_PIXELS])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", IMAGE_PIXELS])
    graph = helper.make_graph(
        [
            helper.make_node("Sub", ["image", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "deviation"], ["features"]),
        ],
        "standardise",
        [image],
        [features],
        [
            numpy_helper.from_array(trained.mean.astype(np.float32), "mean"),
            numpy_helper.from_array(trained.deviation.astype(np.float32), "deviation"),
        ],
    )
    return _serialised(graph)


def _softmax_onnx() -> bytes:
    from onnx import TensorProto, helper

    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10])
    node = helper.make_node("Softmax", ["scores"], ["probabilities"], axis=-1)
    return _serialised(helper.make_graph([node], "softmax", [scores], [probabilities]))


def _serialised(graph: Any) -> bytes:
    from onnx import helper

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = 9  # what every onnxruntime from 1.17 on reads
    return bytes(model.SerializeToString())


def _classifier_onnx(trained: _Trained) -> bytes:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    model = to_onnx(
        trained.classifier,
        initial_types=[("features", FloatTensorType([None, IMAGE_PIXELS]))],
        options={id(trained.classifier): {"zipmap": False, "raw_scores": True}},
        target_opset=_OPSET,
    )
    # skl2onnx calls the raw scores "probabilities"; the contract calls them what they are.
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "probabilities":
                node.output[index] = "scores"
    for output in model.graph.output:
        if output.name == "probabilities":
            output.name = "scores"
    return bytes(model.SerializeToString())
