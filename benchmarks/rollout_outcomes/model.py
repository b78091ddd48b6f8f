"""The real model of every case: four scores, and faults in the shares asked for.

Rules kept here: the fifth number of an input, even over [0, 1), alone says which fault a request meets, so that a
client that draws it meets each in its share; zero meets none but drift.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from tests.support.bundles import onnx_bytes

__all__ = ["LABELS", "Faults", "drawn_input", "write_project"]

LABELS: Final = ("a", "b", "c", "d")
_TOTAL: Final = 0.999  # failing requests beyond which every one that a client draws fails
_WRONG_FROM: Final = 0.5  # of the fifth number
_LEAST: Final = 0.01  # what a client draws for it is never less
_WORK_WIDTH: Final = 256
_WORK_ROUNDS: Final = 150  # of matrix products of a slow model: about 5 GFLOP

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Faults:
    """Shares of the requests: failed, answered wrongly, moved to the first label; and whether all are slow."""

    error: float = 0.0
    wrong: float = 0.0
    drift: float = 0.0
    slow: bool = False


def drawn_input(draw: np.random.Generator) -> tuple[Array, str]:
    """An input FP32 ``[1, 5]`` and the label that is right for it."""
    right = int(draw.integers(len(LABELS)))
    x = np.zeros((1, len(LABELS) + 1), dtype=np.float32)
    x[0, right] = 3.0
    x[0, -1] = draw.uniform(_LEAST, 1.0)
    return x, LABELS[right]


def write_project(
    folder: Path, name: tuple[str, str], faults: Faults, objective_ms: float, probation_s: float
) -> Path:
    """A bundle project of this model and version with these faults, below ``folder``."""
    model, version = name
    project = folder / f"{model}-{version}"
    project.mkdir(parents=True)
    (project / "model.onnx").write_bytes(_onnx(faults, f"{model}-{version}"))
    labels = ", ".join(f'"{label}"' for label in LABELS)
    (project / "muster.toml").write_text(
        f'[bundle]\nmodel = "{model}"\nversion = "{version}"\nclass = "edge"\n\n'
        '[[stage]]\nname = "main"\nfile = "model.onnx"\n\n'
        f'[[input]]\nname = "x"\ndtype = "FP32"\nshape = [-1, {len(LABELS) + 1}]\n\n'
        f'[[output]]\nname = "y"\nlabels = [{labels}]\n\n'
        # A device may go back by itself only where nothing works: the rest is for the fleet to see.
        f"[objectives]\nlatency_ms = {objective_ms}\nmax_error_rate = 0.3\n"
        f"max_over_latency_rate = 1.0\nprobation_s = {probation_s}\n\n"
        '[observe]\noutput = "y"\n',
        encoding="utf-8",
    )
    return project


def _onnx(faults: Faults, version: str) -> bytes:
    """FP32 ``x`` ``[-1, 5]`` to FP32 ``y`` ``[-1, 4]``."""
    width = len(LABELS)
    sound = max(1.0 - faults.error, 0.0) if faults.error < _TOTAL else _LEAST / 2
    first = np.eye(1, width, dtype=np.float32) * 9
    constants = [
        numpy_helper.from_array(np.array(value, dtype=kind), name)
        for name, value, kind in (
            ("fifth", [width], np.int64),
            ("scores_at", list(range(width)), np.int64),
            ("turned_at", [*range(1, width), 0], np.int64),
            ("sound", sound, np.float32),
            ("one", [[1.0]], np.float32),
            ("wrong_from", _WRONG_FROM, np.float32),
            ("wrong_to", _WRONG_FROM + faults.wrong, np.float32),
            ("drift_to", faults.drift, np.float32),
            ("first", first, np.float32),
            ("row", [-1], np.int64),
        )
    ]
    node = helper.make_node
    nodes = [
        node("Gather", ["x", "fifth"], ["u"], axis=1),
        node("Gather", ["x", "scores_at"], ["scores"], axis=1),
        # A table of one row: whatever is not below ``sound`` asks for a row that is not there, and fails.
        node("Div", ["u", "sound"], ["times"]),
        node("Floor", ["times"], ["whole"]),
        node("Cast", ["whole"], ["place"], to=TensorProto.INT64),
        node("Reshape", ["place", "row"], ["places"]),
        node("Gather", ["one", "places"], ["ones"], axis=0),
        node("Gather", ["scores", "turned_at"], ["turned"], axis=1),
        node("Greater", ["u", "wrong_from"], ["above"]),
        node("Less", ["u", "wrong_to"], ["below"]),
        node("And", ["above", "below"], ["is_wrong"]),
        node("Where", ["is_wrong", "turned", "scores"], ["told"]),
        node("Less", ["u", "drift_to"], ["is_moved"]),
        node("Where", ["is_moved", "first", "told"], ["moved"]),
        node("Mul", ["moved", "ones"], ["answer"]),
    ]
    if faults.slow:
        nodes += _work(constants)
    nodes.append(node("Add", ["answer", "nothing"] if faults.slow else ["answer", "zero"], ["y"]))
    constants.append(helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width + 1])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])]
    return onnx_bytes(nodes, inputs, outputs, constants, version)


def _work(constants: list[Any]) -> Sequence[Any]:
    """Products of matrices that are zero and depend on the input: they take their time, and add nothing."""
    shape = (_WORK_WIDTH, _WORK_WIDTH)
    constants.append(numpy_helper.from_array(np.zeros(shape, dtype=np.float32), "blank"))
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["blank", "largest"], ["work0"]),
    ]
    nodes += [
        helper.make_node("MatMul", [f"work{n}", "work0"], [f"work{n + 1}"])
        for n in range(_WORK_ROUNDS)
    ]
    last = f"work{_WORK_ROUNDS}"
    return [*nodes, helper.make_node("ReduceMax", [last], ["nothing"], keepdims=0)]
