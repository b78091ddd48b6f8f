"""The three models of the serving benchmark: each as one ONNX file, one input, its direct answer, and a bundle.

- tiny: scikit-learn's digits, standardised, logistic regression, trained on the spot;
- small: silero-vad for 16 kHz, as its package ships it;
- medium: PP-OCR's classifier of text orientation, as rapidocr-onnxruntime ships it.

The two packages are fetched without what they depend on: only the files in them are wanted.
"""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from fleet.artifacts.build import build_bundle

__all__ = ["OIP_TYPES", "Workload", "make_workloads"]

PACKAGES: Final = ("silero-vad==6.2.3", "rapidocr-onnxruntime==1.4.4")
OIP_TYPES: Final = {"float32": "FP32", "int64": "INT64", "int32": "INT32"}
VERSION: Final = "1.0.0"


@dataclass(frozen=True, slots=True)
class Workload:
    """One model and one request. ``bundle`` is the built folder, ``expected`` what onnxruntime answers itself."""

    name: str
    size: str
    what: str
    onnx: Path
    inputs: Mapping[str, Any]
    expected: Mapping[str, Any]
    bundle: Path
    manifest_sha256: str


def make_workloads(folder: Path, packages: Path) -> list[Workload]:
    """All three, below ``folder``; ``packages`` keeps what was fetched for the next run."""
    _fetch(packages)
    vad = packages / "silero_vad" / "data" / "silero_vad_16k_op15.onnx"
    cls = packages / "rapidocr_onnxruntime" / "models" / "ch_ppocr_mobile_v2.0_cls_infer.onnx"
    randomness = np.random.default_rng(7)
    sound = (randomness.standard_normal((1, 576)) * 0.1).astype(np.float32)
    picture = randomness.uniform(-1, 1, (1, 3, 48, 192)).astype(np.float32)
    digits, image = _digits(folder / "digits.onnx")
    vad_inputs = {
        "input": sound,
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16_000, np.int64),
    }
    return [
        _workload(folder, ("digits", "tiny", "digits classifier"), digits, {"image": image}),
        _workload(folder, ("silero-vad", "small", "silero-vad 16 kHz"), vad, vad_inputs),
        _workload(folder, ("pp-ocr-cls", "medium", "PP-OCR orientation"), cls, {"x": picture}),
    ]


def _fetch(packages: Path) -> None:
    if (packages / "silero_vad").is_dir() and (packages / "rapidocr_onnxruntime").is_dir():
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run([*command, "--target", str(packages), *PACKAGES], check=True, timeout=600)


def _digits(path: Path) -> tuple[Path, Any]:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    images, labels = load_digits(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(images, labels)
    exported = to_onnx(
        model,
        initial_types=[("image", FloatTensorType([None, 64]))],
        options={id(model): {"zipmap": False}},
        target_opset=17,
    )
    path.write_bytes(exported.SerializeToString())
    return path, images[:1].astype(np.float32)


def _workload(
    folder: Path, names: tuple[str, str, str], onnx: Path, inputs: Mapping[str, Any]
) -> Workload:
    name, size, what = names
    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    expected = dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))
    project = folder / f"{name}-project"
    (project / "golden").mkdir(parents=True)
    (project / "model.onnx").write_bytes(onnx.read_bytes())
    (project / "muster.toml").write_text(
        f'[bundle]\nmodel = "{name}"\nversion = "{VERSION}"\nclass = "edge"\n\n'
        '[[stage]]\nname = "model"\nfile = "model.onnx"\n\n'
        + "".join(f'[[input]]\nname = "{tensor}"\n\n' for tensor in inputs)
        + "".join(f'[[output]]\nname = "{tensor}"\n\n' for tensor in expected)
        + f'[[golden]]\nname = "one"\ninputs = {{ {_save(project, inputs)} }}\n'
        f"outputs = {{ {_save(project, expected)} }}\natol = 0.001\nrtol = 0.001\n\n"
        "[objectives]\nlatency_ms = 2000.0\n",
        encoding="utf-8",
    )
    built = build_bundle(project, folder / f"{name}-bundle", now_s=1)
    return Workload(name, size, what, onnx, inputs, expected, built.path, built.manifest_sha256)


def _save(project: Path, tensors: Mapping[str, Any]) -> str:
    """Write golden files; returns what muster.toml says about them."""
    said = []
    for number, (name, value) in enumerate(tensors.items()):
        file = f"golden/{'-'.join(filter(str.isalnum, name))[:20]}-{number}.npy"
        np.save(project / file, value)
        said.append(f'"{name}" = "{file}"')
    return ", ".join(said)
