"""Small ONNX models that grow: in time, in memory, while they are loaded or while they run. For a trial to contain.

Each takes FP32 ``x`` to ``y`` of shape ``[-1, 4]``, like ``tests.support.onnx_models``.
"""

from collections.abc import Sequence
from typing import Any

from onnx import TensorProto, helper

from tests.support.onnx_models import endless_model, floats, model_bytes

__all__ = [
    "folded_memory",
    "folded_time",
    "many_nodes",
    "nested_loops",
    "repeated",
    "resized",
    "sparse_claim",
    "vast",
]


def _sizes(name: str, *values: int) -> Any:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], list(values))


def _added(nodes: Sequence[Any], constants: Sequence[Any], of: str) -> bytes:
    """y = x + (the largest value of tensor ``of``)."""
    tail = [
        helper.make_node("ReduceMax", [of], ["most"], keepdims=0),
        helper.make_node("Add", ["x", "most"], ["y"]),
    ]
    return model_bytes([*nodes, *tail], [floats("x")], [floats("y")], list(constants))


def vast(size_bytes: int = 1 << 40) -> bytes:
    """A constant of a terabyte, from one of four bytes."""
    node = helper.make_node("ConstantOfShape", ["size"], ["many"])
    return _added([node], [_sizes("size", size_bytes // 4)], "many")


def folded_memory(size_bytes: int = 16 << 30) -> bytes:
    """An ``Expand`` of constants alone: onnxruntime works it out while it loads."""
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    node = helper.make_node("Expand", ["one", "size"], ["many"])
    return _added([node], [one, _sizes("size", size_bytes // 4)], "many")


def folded_time(side: int = 4096, products: int = 64) -> bytes:
    """Products of large matrices of constants alone: onnxruntime works them out while it loads."""
    one = helper.make_tensor("one", TensorProto.FLOAT, [1, 1], [1.0])
    nodes = [helper.make_node("Expand", ["one", "size"], ["m0"])]
    nodes += [
        helper.make_node("MatMul", [f"m{step}", "m0"], [f"m{step + 1}"]) for step in range(products)
    ]
    return _added(nodes, [one, _sizes("size", side, side)], f"m{products}")


def repeated(times: int = 1 << 27) -> bytes:
    """``Tile`` of the input at run time."""
    return _added(
        [helper.make_node("Tile", ["x", "times"], ["many"])], [_sizes("times", times, 1)], "many"
    )


def resized(side: int = 1 << 17) -> bytes:
    """``Resize`` of the input to 64 GiB at run time."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["image"]),
        helper.make_node("Resize", ["image", "", "", "size"], ["many"], mode="nearest"),
    ]
    return _added(nodes, [_sizes("axes", 0, 1), _sizes("size", 1, 1, side, side)], "many")


def sparse_claim(values: int = 1 << 40) -> bytes:
    """A sparse constant with one value of a terabyte's worth."""
    value = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    index = helper.make_tensor("index", TensorProto.INT64, [1], [0])
    sparse = helper.make_sparse_tensor(value, index, [values])
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["sparse"], ["most"], keepdims=0),
            helper.make_node("Add", ["x", "most"], ["y"]),
        ],
        "graph",
        [floats("x")],
        [floats("y")],
        sparse_initializer=[sparse],
    )
    opsets = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def many_nodes(count: int) -> bytes:
    """A chain of ``count`` nodes that do nothing."""
    nodes = [
        helper.make_node("Identity", ["x" if not step else f"t{step}"], [f"t{step + 1}"])
        for step in range(count)
    ]
    nodes.append(helper.make_node("Identity", [f"t{count}"], ["y"]))
    return model_bytes(nodes, [floats("x")], [floats("y")])


def nested_loops() -> bytes:
    """A loop of 2^62 rounds inside another of as many."""
    import onnx

    outer = onnx.load_from_string(endless_model())
    inner = onnx.load_from_string(endless_model()).graph
    body = outer.graph.node[0].attribute[0].g
    loop = inner.node[0]
    loop.input[2], loop.output[0] = "carried_in", "carried_out"
    loop.name = "inner"
    for value in loop.attribute[0].g.node:
        for names in (value.input, value.output):
            names[:] = [f"inner_{name}" for name in names]
    for value in (*loop.attribute[0].g.input, *loop.attribute[0].g.output):
        value.name = f"inner_{value.name}"
    kept = [node for node in body.node if "carried_out" not in node.output]
    del body.node[:]
    body.node.extend([*kept, loop])
    return bytes(outer.SerializeToString())
