"""Models that do harm at run time, made of ordinary operators: what a careless or hostile export could hold.

Each is a drop-in for ``tests.support.bundles.tiny_project``: FP32 ``x`` to ``y`` of shape ``[-1, 4]``. Those that wait
for a ``TRIGGER`` behave for small inputs, so that a golden case passes, and do harm once real requests come.
"""

from collections.abc import Sequence
from typing import Any, Final

from onnx import TensorProto, helper

from tests.support.onnx_models import floats, model_bytes

__all__ = [
    "TRIGGER",
    "crashing_model",
    "greedy_when_triggered",
    "hanging_when_triggered",
    "hoarding_model",
    "nan_when_triggered",
]

TRIGGER: Final = 50.0
"""Inputs above it do harm, in the models that wait for one."""

TREE_DEPTH: Final = 20_000


def crashing_model() -> bytes:
    """A decision tree of 20,000 levels: onnxruntime reads it by recursion and runs out of stack (SIGSEGV)."""
    branches, leaves = TREE_DEPTH, TREE_DEPTH + 1
    nodes = branches + leaves
    tree = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["score"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0] * nodes,
        nodes_nodeids=list(range(nodes)),
        nodes_featureids=[0] * nodes,
        nodes_modes=["BRANCH_LEQ"] * branches + ["LEAF"] * leaves,
        nodes_values=[float(level) for level in range(branches)] + [0.0] * leaves,
        nodes_truenodeids=[level + 1 for level in range(branches)] + [0] * leaves,
        nodes_falsenodeids=[leaves + level for level in range(branches)] + [0] * leaves,
        target_treeids=[0] * leaves,
        target_nodeids=list(range(branches, nodes)),
        target_ids=[0] * leaves,
        target_weights=[1.0] * leaves,
    )
    graph = helper.make_graph(
        [tree, helper.make_node("Add", ["x", "score"], ["y"])], "tree", [floats("x")], [floats("y")]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def hoarding_model(rounds: int = 1 << 20, kept_floats: int = 1 << 20) -> bytes:
    """y = x, after a loop that keeps 4 MiB of every round (a scan output): it leaks until nothing is left."""
    condition = helper.make_tensor_value_info("condition_in", TensorProto.BOOL, [])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition_in"], ["condition_out"]),
            helper.make_node("Identity", ["carried_in"], ["carried_out"]),
            helper.make_node("ReduceMax", ["carried_in"], ["most"], keepdims=0),
            helper.make_node("Expand", ["most", "kept_size"], ["kept"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            condition,
            floats("carried_in"),
        ],
        [
            helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
            floats("carried_out"),
            floats("kept", [kept_floats]),
        ],
    )
    loop = helper.make_node("Loop", ["rounds", "go_on", "x"], ["same", "hoard"], body=body)
    nodes = [
        loop,
        helper.make_node("ReduceSum", ["hoard"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["same", "nothing"], ["y"]),
    ]
    constants = [
        helper.make_tensor("rounds", TensorProto.INT64, [], [rounds]),
        helper.make_tensor("go_on", TensorProto.BOOL, [], [True]),
        helper.make_tensor("kept_size", TensorProto.INT64, [1], [kept_floats]),
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
    ]
    return model_bytes(nodes, [floats("x")], [floats("y")], constants)


def hanging_when_triggered() -> bytes:
    """y = x; once an input is above ``TRIGGER``, only after a loop of 2^40 rounds."""
    condition = helper.make_tensor_value_info("condition_in", TensorProto.BOOL, [])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition_in"], ["condition_out"]),
            helper.make_node("Identity", ["carried_in"], ["carried_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            condition,
            floats("carried_in"),
        ],
        [
            helper.make_tensor_value_info("condition_out", TensorProto.BOOL, []),
            floats("carried_out"),
        ],
    )
    loop = helper.make_node("Loop", ["rounds", "go_on", "x"], ["y"], body=body)
    nodes, constants = _triggered(TensorProto.INT64, "rounds", 2**40)
    constants.append(helper.make_tensor("go_on", TensorProto.BOOL, [], [True]))
    return model_bytes([*nodes, loop], [floats("x")], [floats("y")], constants)


def greedy_when_triggered(size_bytes: int = 1 << 42) -> bytes:
    """y = x; once an input is above ``TRIGGER`` it also makes a tensor of ``size_bytes``."""
    count, constants = _triggered(TensorProto.INT64, "count", size_bytes // 4)
    constants += [
        helper.make_tensor("one_dimension", TensorProto.INT64, [1], [1]),
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
    ]
    nodes = [
        *count,
        helper.make_node("Reshape", ["count", "one_dimension"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["many"]),
        helper.make_node("ReduceSum", ["many"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    return model_bytes(nodes, [floats("x")], [floats("y")], constants)


def nan_when_triggered() -> bytes:
    """y = x * c / c, where c is 1, or 0 for a row whose largest input is above ``TRIGGER``: 0/0 is NaN."""
    nodes = [
        helper.make_node("LessOrEqual", ["x", "limit"], ["calm"]),
        helper.make_node("Cast", ["calm"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "c"], ["upper"]),
        helper.make_node("Div", ["upper", "c"], ["y"]),
    ]
    limit = helper.make_tensor("limit", TensorProto.FLOAT, [], [TRIGGER])
    return model_bytes(nodes, [floats("x")], [floats("y")], [limit])


def _triggered(kind: int, name: str, value: int) -> tuple[Sequence[Any], list[Any]]:
    """Nodes that make the scalar ``name``: ``value`` once an input is above ``TRIGGER``, else 0."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["largest", "limit"], ["triggered"]),
        helper.make_node("Where", ["triggered", "harm", "none"], [name]),
    ]
    constants = [
        helper.make_tensor("limit", TensorProto.FLOAT, [], [TRIGGER]),
        helper.make_tensor("harm", kind, [], [value]),
        helper.make_tensor("none", kind, [], [0]),
    ]
    return nodes, constants
