"""What an ONNX file takes and makes, after checks that no device should have to make.

Rules kept here: the graph passes onnx's own checker; operators come from known domains only (or are
functions that the model itself defines), so no native library is needed; nothing is read from outside
the file; no compiled blobs (EPContext). Nothing is executed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError

from agent.runtime.verdict import clean_text
from fleet.artifacts.errors import BuildRefusedError

__all__ = ["ALLOWED_DOMAINS", "OnnxModel", "OnnxTensor", "read_onnx"]

ALLOWED_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_COMPILED_OPERATORS: Final = frozenset({"EPContext"})
_MESSAGE_CHARS: Final = 400
_PRODUCER_CHARS: Final = 80

_DTYPES: Final = {
    "BOOL": "BOOL", "UINT8": "UINT8", "UINT16": "UINT16", "UINT32": "UINT32", "UINT64": "UINT64",
    "INT8": "INT8", "INT16": "INT16", "INT32": "INT32", "INT64": "INT64",
    "FLOAT16": "FP16", "FLOAT": "FP32", "DOUBLE": "FP64", "STRING": "BYTES",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OnnxTensor:
    """An input or output. ``dtype``: as in the contract, or what it is instead of a tensor (``sequence``).
    ``shape``: -1 is free; None when even the rank is unknown."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    usable: bool = True


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """Both sides of a model. ``opsets``: pairs of domain ("" for ONNX's own) and version; ``producer``: its maker."""

    inputs: tuple[OnnxTensor, ...]
    outputs: tuple[OnnxTensor, ...]
    opsets: tuple[tuple[str, int], ...] = ()
    ir_version: int = 0
    producer: str = ""

    def input(self, name: str) -> OnnxTensor | None:
        return next((tensor for tensor in self.inputs if tensor.name == name), None)

    def output(self, name: str) -> OnnxTensor | None:
        return next((tensor for tensor in self.outputs if tensor.name == name), None)


def read_onnx(raw: bytes, where: str) -> OnnxModel:
    """Check an ONNX file and say what it takes and makes. ``where`` names it in messages.

    Raises:
        BuildRefusedError: it is not ONNX, or it would be refused or dangerous on a device.
    """
    try:
        model: Any = onnx.load_model_from_string(raw)
    except (DecodeError, ValueError) as error:
        raise BuildRefusedError(
            f"{where} is not an ONNX model: {error}; export it again"
        ) from error
    _refuse_external_data(model, where)
    _refuse_operators(model, where)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        reason = " ".join(str(error).split())[:_MESSAGE_CHARS]
        raise BuildRefusedError(
            f"{where} is a broken ONNX model: {reason}; export it again"
        ) from error
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return OnnxModel(
        inputs=tuple(_tensor(value) for value in model.graph.input if value.name not in constants),
        outputs=tuple(_tensor(value) for value in model.graph.output),
        opsets=tuple(sorted((one.domain, one.version) for one in model.opset_import)),
        ir_version=model.ir_version,
        producer=clean_text(f"{model.producer_name} {model.producer_version}", _PRODUCER_CHARS),
    )


def _tensor(value: Any) -> OnnxTensor:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        shown = str(kind or "untyped").removesuffix("_type")
        return OnnxTensor(value.name, shown, None, usable=False)
    tensor = value.type.tensor_type
    onnx_name = onnx.TensorProto.DataType.Name(tensor.elem_type)
    dtype = _DTYPES.get(onnx_name, onnx_name)
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.WhichOneof("value") == "dim_value" and dim.dim_value >= 0 else -1
            for dim in tensor.shape.dim
        )
    return OnnxTensor(value.name, dtype, shape, usable=onnx_name in _DTYPES)


def _graphs(model: Any) -> Iterator[tuple[Any, Any]]:
    """(nodes, graph or None) of the main graph, every nested graph and every function."""
    waiting: list[tuple[Any, Any]] = [(model.graph.node, model.graph)]
    waiting += [(function.node, None) for function in model.functions]
    waiting += [(info.algorithm.node, info.algorithm) for info in model.training_info]
    waiting += [(info.initialization.node, info.initialization) for info in model.training_info]
    while waiting:
        nodes, graph = waiting.pop()
        yield nodes, graph
        for node in nodes:
            for attribute in node.attribute:
                nested = [attribute.g] if attribute.HasField("g") else []
                waiting += [(inner.node, inner) for inner in (*nested, *attribute.graphs)]


def _refuse_operators(model: Any, where: str) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    for nodes, _ in _graphs(model):
        for node in nodes:
            called = f"operator {node.domain + '.' if node.domain else ''}{node.op_type}"
            if node.op_type in _COMPILED_OPERATORS:
                raise BuildRefusedError(
                    f"{where} holds {called}, a model compiled for one machine; ship the original"
                )
            if node.domain not in ALLOWED_DOMAINS and (node.domain, node.op_type) not in own:
                known = ", ".join(repr(domain) for domain in sorted(ALLOWED_DOMAINS))
                raise BuildRefusedError(
                    f"{where} uses {called} of the domain {node.domain!r}, for which devices have no "
                    f"library; allowed are {known}: export the model without custom operators"
                )


def _refuse_external_data(model: Any, where: str) -> None:
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise BuildRefusedError(
                f"{where} keeps the tensor {tensor.name!r} in another file (external data); save the "
                f"model as one file: onnx.save(model, path, save_as_external_data=False)"
            )


def _tensors(model: Any) -> Iterator[Any]:
    for nodes, graph in _graphs(model):
        if graph is not None:
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                nested = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
                for sparse in (*nested, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
