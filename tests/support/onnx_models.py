"""Small ONNX models and bundle folders made of them, good and bad ones."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from agent.bundle import (
    PIECE_BYTES,
    BundleFile,
    GoldenCase,
    GoldenOutput,
    GoldenTensor,
    Manifest,
    Objectives,
    Observe,
    Piece,
    Requirements,
    Stage,
    TensorSpec,
    manifest_sha256,
)
from agent.runtime.dtypes import NUMPY_OF, to_raw

OPSET = [helper.make_opsetid("", 17)]


@dataclass(frozen=True)
class MadeBundle:
    """A bundle folder on disk."""

    path: Path
    manifest: Manifest
    sha256: str


def model_bytes(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    constants: Sequence[Any] = (),
) -> bytes:
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(constants))
    return bytes(helper.make_model(graph, opset_imports=OPSET, ir_version=8).SerializeToString())


def floats(name: str, shape: Sequence[int | str] = ("batch", 4)) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def scale_model(factor: float = 2.0) -> bytes:
    """y = factor * x."""
    constant = helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])
    return model_bytes(
        [helper.make_node("Mul", ["x", "factor"], ["y"])], [floats("x")], [floats("y")], [constant]
    )


def log_model() -> bytes:
    """y = log(x): NaN below zero, minus infinity at zero."""
    return model_bytes([helper.make_node("Log", ["x"], ["y"])], [floats("x")], [floats("y")])


def endless_model() -> bytes:
    """y = x, after a loop of 2^62 rounds."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition_in"], ["condition_out"]),
            helper.make_node("Identity", ["carried_in"], ["carried_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition_in", TensorProto.BOOL, []),
            floats("carried_in"),
        ],
        [
            helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
            floats("carried_out"),
        ],
    )
    rounds = helper.make_tensor("rounds", TensorProto.INT64, [], [2**62])
    go_on = helper.make_tensor("go_on", TensorProto.BOOL, [], [True])
    loop = helper.make_node("Loop", ["rounds", "go_on", "x"], ["y"], body=body)
    return model_bytes([loop], [floats("x")], [floats("y")], [rounds, go_on])


def loop_model() -> bytes:
    """y = rounds, counted one by one."""

    def scalar(name: str, kind: int) -> Any:
        return helper.make_tensor_value_info(name, kind, [])

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition_in"], ["condition_out"]),
            helper.make_node("Add", ["count_in", "one"], ["count_out"]),
        ],
        "body",
        [
            scalar("round", TensorProto.INT64),
            scalar("condition_in", TensorProto.BOOL),
            scalar("count_in", TensorProto.INT64),
        ],
        [scalar("condition_out", TensorProto.BOOL), scalar("count_out", TensorProto.INT64)],
    )
    constants = [
        helper.make_tensor("one", TensorProto.INT64, [], [1]),
        helper.make_tensor("zero", TensorProto.INT64, [], [0]),
        helper.make_tensor("go_on", TensorProto.BOOL, [], [True]),
    ]
    loop = helper.make_node("Loop", ["rounds", "go_on", "zero"], ["y"], body=body)
    return model_bytes(
        [loop], [scalar("rounds", TensorProto.INT64)], [scalar("y", TensorProto.INT64)], constants
    )


def hungry_model(size_bytes: int) -> bytes:
    """y = x + (the sum of ``size_bytes`` of ones made at run time, times zero)."""
    count = helper.make_tensor("count", TensorProto.INT64, [1], [size_bytes // 4])
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    nodes = [
        # From a value of the input, so that nothing is folded away while loading.
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["ignored"], to=TensorProto.FLOAT),
        helper.make_node("Expand", ["one", "count"], ["ones"]),
        helper.make_node("ReduceSum", ["ones"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    return model_bytes(nodes, [floats("x")], [floats("y")], [count, one, zero])


def gather_model() -> bytes:
    """y = table[index]: fails at run time for an index that is not 0..3."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [4], [0.0, 1.0, 2.0, 3.0])
    index = helper.make_tensor_value_info("index", TensorProto.INT64, ["batch"])
    return model_bytes(
        [helper.make_node("Gather", ["table", "index"], ["y"])],
        [index],
        [floats("y", ["batch"])],
        [table],
    )


def identity_model(onnx_type: int) -> bytes:
    """y = x for any element type."""
    x = helper.make_tensor_value_info("x", onnx_type, ["n"])
    y = helper.make_tensor_value_info("y", onnx_type, ["n"])
    return model_bytes([helper.make_node("Identity", ["x"], ["y"])], [x], [y])


X = TensorSpec("x", "FP32", (-1, 4))
Y = TensorSpec("y", "FP32", (-1, 4))


@dataclass
class BundleMaker:
    """What goes into a bundle; ``write`` puts it into a folder without checking any of it."""

    models: Mapping[str, bytes] = field(default_factory=lambda: {"model.onnx": scale_model()})
    stages: Sequence[Stage] = (Stage("main", "model.onnx", (("x", "x"),), (("y", "y"),)),)
    inputs: Sequence[TensorSpec] = (X,)
    outputs: Sequence[TensorSpec] = (Y,)
    golden: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]] = ()
    atol: float = 1e-5
    rtol: float = 1e-5
    model: str = "scale"
    version: str = "1.0.0"
    device_class: str = "test"
    objectives: Objectives = field(default_factory=Objectives)
    requirements: Requirements = field(default_factory=Requirements)
    intra_op_threads: int = 1
    observe: Observe | None = None
    created_s: int = 1_700_000_000

    def write(self, folder: Path) -> MadeBundle:
        folder.mkdir(parents=True)
        files = dict(self.models)
        cases = []
        for i, (inputs, outputs) in enumerate(self.golden):
            tensors: dict[str, GoldenTensor] = {}
            for kind, arrays, specs in (
                ("in", inputs, self.inputs),
                ("out", outputs, self.outputs),
            ):
                for name, array in arrays.items():
                    dtype = next(spec.dtype for spec in specs if spec.name == name)
                    value = np.asarray(array, dtype=NUMPY_OF[dtype])
                    tensors[f"{kind}-{name}"] = GoldenTensor(
                        f"golden/{i}-{kind}-{name}.bin", dtype, value.shape
                    )
                    files[f"golden/{i}-{kind}-{name}.bin"] = to_raw(value)
            cases.append(
                GoldenCase(
                    f"case-{i}",
                    tuple((name, tensors[f"in-{name}"]) for name in inputs),
                    tuple(
                        GoldenOutput(name, tensors[f"out-{name}"], self.atol, self.rtol)
                        for name in outputs
                    ),
                )
            )
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        manifest = Manifest(
            model=self.model, version=self.version, device_class=self.device_class, created_s=self.created_s,
            files=tuple(bundle_file(name, data) for name, data in files.items()),
            stages=tuple(self.stages), inputs=tuple(self.inputs), outputs=tuple(self.outputs), golden=tuple(cases),
            objectives=self.objectives, requirements=self.requirements, intra_op_threads=self.intra_op_threads,
            observe=self.observe,
        )  # fmt: skip
        raw = manifest.to_bytes()
        (folder / "manifest.json").write_bytes(raw)
        return MadeBundle(folder, manifest, manifest_sha256(raw))


def bundle_file(name: str, data: bytes) -> BundleFile:
    pieces = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
    return BundleFile(
        name, len(data), hashlib.sha256(data).hexdigest(),
        tuple(Piece(hashlib.sha256(piece).hexdigest(), len(piece)) for piece in pieces),
    )  # fmt: skip


def scale_bundle(
    folder: Path, factor: float = 2.0, version: str = "1.0.0", **changes: Any
) -> MadeBundle:
    """y = factor * x with one golden case."""
    x = np.array([[1, 2, 3, 4]], dtype=np.float32)
    maker = BundleMaker(
        models={"model.onnx": scale_model(factor)},
        version=version,
        golden=[({"x": x}, {"y": x * factor})],
        **changes,
    )
    return maker.write(folder)
