"""Bundle projects and bundles for tests: a trivial one, a real digits classifier, and magika's own model.

Each function makes a new folder below ``tmp`` and returns it: a project for ``fleet bundle build`` or
``fleet.artifacts.build.build_bundle``.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from fleet.artifacts.build import BuildResult, build_bundle

__all__ = [
    "NOW_S",
    "build_tiny",
    "digits_data",
    "digits_project",
    "magika_features",
    "magika_folder",
    "magika_project",
    "tiny_project",
]

NOW_S = 1_700_000_000
OPSET = 17
IR_VERSION = 9
DIGITS_MODEL = "digits"

Array = npt.NDArray[Any]


# --- tiny -----------------------------------------------------------------------------------------


def tiny_project(
    tmp: Path,
    version: str = "1.0.0",
    *,
    model: str = "tiny",
    device_class: str = "edge",
    factor: float = 2.0,
    offset: float = 0.25,
    input_range: tuple[float, float] | None = (-100.0, 100.0),
    output_range: tuple[float, float] | None = (-1000.0, 1000.0),
    latency_ms: float = 1000.0,
    probation_s: float = 0.5,
    padding_bytes: int = 0,
    golden: bool = True,
    extra: str = "",
) -> Path:
    """``y = factor * x + offset`` on FP32 ``x``, ``y`` of shape ``[-1, 4]``; a few hundred bytes.

    The golden case's outputs lie in 0..1. ``padding_bytes`` of incompressible weights make it larger; they
    differ with the version, as does the model file. ``extra`` is more TOML at the end.
    """
    folder = _new_folder(tmp, f"{model}-{version}")
    (folder / "model.onnx").write_bytes(tiny_onnx(version, factor, offset, padding_bytes))
    x = np.array([[0.0, 0.1, 0.2, 0.3]], dtype=np.float32)
    cases = ""
    if golden:
        _save(folder / "golden" / "x.npy", x)
        _save(folder / "golden" / "y.npy", x * np.float32(factor) + np.float32(offset))
        cases = (
            '[[golden]]\nname = "small"\ninputs = { x = "golden/x.npy" }\n'
            'outputs = { y = "golden/y.npy" }\natol = 1e-5\nrtol = 1e-5\n\n'
        )
    (folder / "muster.toml").write_text(
        f'[bundle]\nmodel = "{model}"\nversion = "{version}"\nclass = "{device_class}"\n\n'
        '[[stage]]\nname = "main"\nfile = "model.onnx"\n\n'
        f'[[input]]\nname = "x"\ndtype = "FP32"\nshape = [-1, 4]\n{_range(input_range)}\n'
        f'[[output]]\nname = "y"\n{_range(output_range)}\n{cases}'
        f"[objectives]\nlatency_ms = {latency_ms}\nprobation_s = {probation_s}\n\n{extra}",
        encoding="utf-8",
    )
    return folder


def tiny_onnx(
    version: str = "1.0.0", factor: float = 2.0, offset: float = 0.25, padding_bytes: int = 0
) -> bytes:
    """The model of ``tiny_project``."""
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["y" if not padding_bytes else "moved"]),
    ]
    constants = [_scalar("factor", factor), _scalar("offset", offset)]
    if padding_bytes:
        noise = hashlib.shake_128(version.encode()).digest(padding_bytes)
        constants.append(
            numpy_helper.from_array(np.frombuffer(noise, dtype=np.uint8).copy(), "noise")
        )
        constants.append(_scalar("nothing", 0.0))
        nodes += [
            helper.make_node("Cast", ["noise"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
            helper.make_node("Add", ["moved", "zero"], ["y"]),
        ]
    return onnx_bytes(nodes, [_floats("x", 4)], [_floats("y", 4)], constants, version)


def build_tiny(tmp: Path, version: str = "1.0.0", **changes: Any) -> BuildResult:
    """The built bundle of ``tiny_project``, in ``tmp/VERSION``."""
    project = tiny_project(tmp / "projects", version, **changes)
    return build_bundle(project, tmp / version, now_s=NOW_S)


# --- digits ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DigitsData:
    """Images FP32 ``[n, 64]`` with pixels 0..16, labels INT64 ``[n]``; ``test`` has never been trained on."""

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array


@functools.cache
def digits_data() -> DigitsData:
    """scikit-learn's 1,797 scans, split the same way at every call."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.3, random_state=0, stratify=labels)
    train_images, test_images, train_labels, test_labels = parts
    return DigitsData(
        train_images.astype(np.float32),
        train_labels.astype(np.int64),
        test_images.astype(np.float32),
        test_labels.astype(np.int64),
    )


def digits_project(
    tmp: Path,
    version: str = "1.0.0",
    *,
    scaled: bool = True,
    train_rows: int | None = None,
    golden: bool = True,
    device_class: str = "edge",
    probation_s: float = 0.5,
) -> Path:
    """A digits classifier: stage ``pre`` scales pixels 0..16 to 0..1, stage ``model`` is scikit-learn's.

    FP32 ``image`` ``[-1, 64]`` in; INT64 ``label`` ``[-1]`` and FP32 ``probabilities`` ``[-1, 10]`` out.
    ``scaled`` False: the pre-processing is forgotten, as people do; it then has one golden case, a blank
    image, which cannot tell. ``train_rows``: train on so many images only (worse).
    """
    folder = _new_folder(tmp, f"{DIGITS_MODEL}-{version}")
    classifier = _digits_classifier(train_rows)
    (folder / "model.onnx").write_bytes(_sklearn_onnx(classifier))
    features = "image"
    stages = ""
    if scaled:
        (folder / "pre.onnx").write_bytes(_scale_onnx(16.0))
        features = "scaled"
        stages = '[[stage]]\nname = "pre"\nfile = "pre.onnx"\n\n'
    cases = _digits_golden(folder, classifier, scaled=scaled) if golden else ""
    (folder / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(10)), "utf-8")
    (folder / "muster.toml").write_text(
        f'[bundle]\nmodel = "{DIGITS_MODEL}"\nversion = "{version}"\nclass = "{device_class}"\n\n'
        f"{stages}"
        f'[[stage]]\nname = "model"\nfile = "model.onnx"\ninputs = {{ features = "{features}" }}\n\n'
        '[[input]]\nname = "image"\ndtype = "FP32"\nshape = [-1, 64]\nrange = [0, 16]\n\n'
        '[[output]]\nname = "label"\nrange = [0, 9]\n\n'
        '[[output]]\nname = "probabilities"\nrange = [-0.001, 1.001]\nlabels = "labels.txt"\n\n'
        f"{cases}"
        f"[objectives]\nlatency_ms = 200.0\nprobation_s = {probation_s}\n\n"
        "[parameters]\npixels = 64\n",
        encoding="utf-8",
    )
    return folder


@functools.cache
def _digits_classifier(train_rows: int | None) -> Any:
    from sklearn.linear_model import LogisticRegression

    data = digits_data()
    classifier = LogisticRegression(max_iter=1000, C=10.0)
    return classifier.fit(data.train_images[:train_rows] / 16, data.train_labels[:train_rows])


def _sklearn_onnx(classifier: Any) -> bytes:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    model = to_onnx(
        classifier,
        initial_types=[("features", FloatTensorType([None, 64]))],
        options={id(classifier): {"zipmap": False}},
        target_opset=OPSET,
    )
    return bytes(model.SerializeToString())


def _scale_onnx(divisor: float) -> bytes:
    node = helper.make_node("Div", ["image", "divisor"], ["scaled"])
    constants = [_scalar("divisor", divisor)]
    return onnx_bytes([node], [_floats("image", 64)], [_floats("scaled", 64)], constants)


def _digits_golden(folder: Path, classifier: Any, *, scaled: bool) -> str:
    """Cases with the answers of scikit-learn itself."""
    data = digits_data()
    images = {f"digit-{n}": data.train_images[data.train_labels == n][:1] for n in (0, 3, 8)}
    if not scaled:
        images = {"blank": np.zeros((1, 64), dtype=np.float32)}
    cases = ""
    for name, image in images.items():
        features = image / 16
        _save(folder / "golden" / f"{name}-image.npy", image)
        _save(folder / "golden" / f"{name}-label.npy", classifier.predict(features))
        probabilities = classifier.predict_proba(features).astype(np.float32)
        _save(folder / "golden" / f"{name}-probabilities.npy", probabilities)
        cases += (
            f'[[golden]]\nname = "{name}"\ninputs = {{ image = "golden/{name}-image.npy" }}\n'
            f'outputs = {{ label = "golden/{name}-label.npy", '
            f'probabilities = "golden/{name}-probabilities.npy" }}\natol = 1e-4\nrtol = 1e-3\n\n'
        )
    return cases


# --- magika ---------------------------------------------------------------------------------------


def magika_folder() -> Path:
    """Where the installed magika package keeps its model: ``model.onnx`` and ``config.min.json``."""
    import magika

    return Path(magika.__file__).parent / "models" / "standard_v3_3"


def magika_features(content: bytes) -> Array:
    """INT32 ``[1, 2048]``: the first and last KiB of a file, stripped and padded as magika does it."""
    config = json.loads((magika_folder() / "config.min.json").read_text("utf-8"))
    beg, end, padding = config["beg_size"], config["end_size"], config["padding_token"]
    block = config["block_size"]
    first = list(content[:block].lstrip()[:beg])
    last = list(content[-block:].rstrip()[-end:])
    row = first + [padding] * (beg - len(first)) + [padding] * (end - len(last)) + last
    return np.array([row], dtype=np.int32)


def magika_project(
    tmp: Path,
    version: str = "1.0.0",
    *,
    device_class: str = "edge",
    probation_s: float = 0.5,
    recorded: bool = False,
) -> Path:
    """Google's file-type classifier from the installed package: INT32 ``bytes`` ``[-1, 2048]`` in, FP32
    ``target_label`` ``[-1, 214]`` out. ``recorded``: the golden case has no outputs yet."""
    folder = _new_folder(tmp, f"magika-{version}")
    source = magika_folder()
    (folder / "model.onnx").write_bytes((source / "model.onnx").read_bytes())
    config = json.loads((source / "config.min.json").read_text("utf-8"))
    labels = "\n".join(config["target_labels_space"])
    (folder / "labels.txt").write_text(labels + "\n", "utf-8")
    features = magika_features(Path(__file__).read_bytes())
    _save(folder / "golden" / "python.npy", features)
    outputs = ""
    if not recorded:
        import onnxruntime

        session = onnxruntime.InferenceSession(
            str(source / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        (scores,) = session.run(["target_label"], {"bytes": features})
        _save(folder / "golden" / "python-scores.npy", scores)
        outputs = 'outputs = { target_label = "golden/python-scores.npy" }\n'
    (folder / "muster.toml").write_text(
        f'[bundle]\nmodel = "magika"\nversion = "{version}"\nclass = "{device_class}"\n\n'
        '[[stage]]\nname = "model"\nfile = "model.onnx"\n\n'
        '[[input]]\nname = "bytes"\nrange = [0, 256]\n\n'
        '[[output]]\nname = "target_label"\nrange = [0, 1.001]\nlabels = "labels.txt"\n\n'
        f'[[golden]]\nname = "python"\ninputs = {{ bytes = "golden/python.npy" }}\n{outputs}\n'
        f"[objectives]\nlatency_ms = 2000.0\nprobation_s = {probation_s}\n",
        encoding="utf-8",
    )
    return folder


# --- parts ----------------------------------------------------------------------------------------


def onnx_bytes(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    constants: Sequence[Any] = (),
    version: str = "",
    opsets: Sequence[tuple[str, int]] = (("", OPSET),),
) -> bytes:
    """A serialised ONNX model. ``version`` is written into it."""
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(constants))
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, number) for domain, number in opsets],
        ir_version=IR_VERSION,
        producer_version=version,
    )
    return bytes(model.SerializeToString())


def _floats(name: str, width: int) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])


def _scalar(name: str, value: float) -> Any:
    return helper.make_tensor(name, TensorProto.FLOAT, [], [value])


def _range(span: tuple[float, float] | None) -> str:
    return "" if span is None else f"range = [{span[0]}, {span[1]}]\n"


def _new_folder(tmp: Path, name: str) -> Path:
    folder = tmp / name
    folder.mkdir(parents=True)
    return folder


def _save(path: Path, array: Array) -> None:
    path.parent.mkdir(exist_ok=True)
    np.save(path, array)
