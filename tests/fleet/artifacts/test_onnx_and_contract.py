"""What an ONNX file may be, and how stages and contract must fit what the models take and make."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet.artifacts.contract import fit_contract
from fleet.artifacts.errors import BuildRefusedError
from fleet.artifacts.onnx_model import OnnxModel, OnnxTensor, read_onnx
from fleet.artifacts.project import Project, StageDraft, TensorDraft, read_project
from tests.support.bundles import magika_folder, onnx_bytes, tiny_onnx, tiny_project

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])


# --- files ----------------------------------------------------------------------------------------


def test_both_sides_of_a_model() -> None:
    assert read_onnx(tiny_onnx(), "tiny") == OnnxModel(
        (OnnxTensor("x", "FP32", (-1, 4)),),
        (OnnxTensor("y", "FP32", (-1, 4)),),
        opsets=(("", 17),),
        ir_version=9,
        producer="1.0.0",
    )
    magika = read_onnx((magika_folder() / "model.onnx").read_bytes(), "magika")
    assert magika.input("bytes") == OnnxTensor("bytes", "INT32", (-1, 2048))
    assert magika.output("target_label") == OnnxTensor("target_label", "FP32", (-1, 214))


def test_a_custom_operator_is_refused() -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="acme.ops")
    raw = onnx_bytes([node], [X], [Y], opsets=(("", 17), ("acme.ops", 1)))
    with pytest.raises(BuildRefusedError) as refused:
        read_onnx(raw, "model.onnx")
    assert "model.onnx uses operator acme.ops.Frobnicate of the domain 'acme.ops'" in str(
        refused.value
    )
    assert "for which devices have no library; allowed are '', 'ai.onnx', 'ai.onnx.ml'" in str(
        refused.value
    )


def test_a_custom_operator_in_a_nested_graph_is_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("Frobnicate", ["x"], ["z"], domain="acme.ops")], "branch", [], [Y]
    )
    node = helper.make_node("If", ["on"], ["y"], then_branch=branch, else_branch=branch)
    on = helper.make_tensor("on", TensorProto.BOOL, [], [True])
    raw = onnx_bytes([node], [X], [Y], [on], opsets=(("", 17), ("acme.ops", 1)))
    with pytest.raises(BuildRefusedError, match=r"uses operator acme.ops.Frobnicate"):
        read_onnx(raw, "model.onnx")


def test_a_function_that_the_model_defines_is_allowed() -> None:
    function = helper.make_function(
        "acme.ops", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    node = helper.make_node("Double", ["x"], ["y"], domain="acme.ops")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme.ops", 1)]
    graph = helper.make_graph([node], "graph", [X], [Y])
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=9)
    assert read_onnx(model.SerializeToString(), "model.onnx").input("x")


def test_a_compiled_model_is_refused() -> None:
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")
    raw = onnx_bytes([node], [X], [Y], opsets=(("", 17), ("com.microsoft", 1)))
    with pytest.raises(
        BuildRefusedError, match=r"com.microsoft.EPContext, a model compiled for one"
    ):
        read_onnx(raw, "model.onnx")


@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_external_data_is_refused(place: str) -> None:
    weights = numpy_helper.from_array(np.ones(4, dtype=np.float32), "weights")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../../../etc/passwd")
    add = helper.make_node("Add", ["x", "weights"], ["y"])
    if place == "initializer":
        raw = onnx_bytes([add], [X], [Y], [weights])
    else:
        constant = helper.make_node("Constant", [], ["weights"], value=weights)
        raw = onnx_bytes([constant, add], [X], [Y])
    with pytest.raises(BuildRefusedError, match=r"keeps the tensor 'weights' in another file"):
        read_onnx(raw, "model.onnx")


def test_what_is_no_tensor_is_known_as_such() -> None:
    scores = helper.make_tensor_sequence_value_info("scores", TensorProto.FLOAT, [4])
    node = helper.make_node("SequenceConstruct", ["x"], ["scores"])
    found = read_onnx(onnx_bytes([node], [X], [scores]), "model.onnx").output("scores")
    assert found == OnnxTensor("scores", "sequence", None, usable=False)


# --- contract -------------------------------------------------------------------------------------


def tensor(name: str, dtype: str = "FP32", shape: tuple[int, ...] | None = (-1, 4)) -> OnnxTensor:
    return OnnxTensor(name, dtype, shape)


def draft(name: str, dtype: str | None = None, shape: tuple[int, ...] | None = None) -> TensorDraft:
    return TensorDraft(name, dtype, shape, None, None, ())


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return read_project(tiny_project(tmp_path))


def fitted(project: Project, **changes: Any) -> Any:
    """Two stages, ``x`` -> ``middle`` -> ``y``; ``first`` and ``second`` replace their models."""
    models = {
        "a.onnx": changes.pop("first", OnnxModel((tensor("x"),), (tensor("middle"),))),
        "b.onnx": changes.pop("second", OnnxModel((tensor("middle"),), (tensor("y"),))),
    }
    usual: dict[str, Any] = {
        "stages": (StageDraft("a", "a.onnx", (), None), StageDraft("b", "b.onnx", (), None)),
        "inputs": (draft("x"),),
        "outputs": (draft("y"),),
    }
    return fit_contract(dataclasses.replace(project, **{**usual, **changes}), models)


def test_names_dtypes_and_shapes_are_taken_from_the_models(project: Project) -> None:
    contract = fitted(project)
    assert contract.stages[1].inputs == (("middle", "middle"),)
    assert (contract.inputs[0].dtype, contract.inputs[0].shape) == ("FP32", (-1, 4))
    assert (contract.outputs[0].dtype, contract.outputs[0].shape) == ("FP32", (-1, 4))


def test_the_contract_may_be_narrower_than_the_model(project: Project) -> None:
    contract = fitted(
        project, inputs=(draft("x", shape=(1, 4)),), outputs=(draft("y", shape=(1, 4)),)
    )
    assert contract.inputs[0].shape == (1, 4)


def test_the_models_own_names_can_be_mapped(project: Project) -> None:
    contract = fitted(
        project,
        first=OnnxModel((tensor("in:0"),), (tensor("out:0"), tensor("more:0"))),
        stages=(
            StageDraft("a", "a.onnx", (("in:0", "x"),), (("out:0", "middle"),)),
            StageDraft("b", "b.onnx", (), None),
        ),
    )
    assert contract.stages[0].inputs == (("x", "in:0"),)
    assert contract.stages[0].outputs == (("out:0", "middle"),)


UNFIT: list[tuple[dict[str, Any], str]] = [
    (
        {"second": OnnxModel((tensor("features"),), (tensor("y"),))},
        "[[stage]] 'b': b.onnx takes 'features', but there is no tensor 'features' by then (there are "
        'middle, x); say which one it gets: inputs = { features = "..." }',
    ),
    (
        {"second": OnnxModel((tensor("middle", "INT64"),), (tensor("y"),))},
        "[[stage]] 'b': b.onnx takes 'middle' as INT64[-1, 4], but 'middle' of stage 'a' is FP32",
    ),
    (
        {"second": OnnxModel((tensor("middle", shape=(-1, 8)),), (tensor("y"),))},
        "takes 'middle' as FP32[-1, 8], but 'middle' of stage 'a' has the shape [-1, 4]",
    ),
    (
        {"second": OnnxModel((tensor("middle", shape=(4,)),), (tensor("y"),))},
        "takes 'middle' as FP32[4], but 'middle' of stage 'a' has the shape [-1, 4]",
    ),
    (
        {"second": OnnxModel((tensor("middle"),), (tensor("x"),))},
        "[[stage]] 'b' makes 'x', but [[input]] 'x' is called so already; give it another name: "
        'outputs = { x = "..." }',
    ),
    (
        {"second": OnnxModel((tensor("middle"),), (OnnxTensor("y", "map", None, usable=False),))},
        "[[stage]] 'b': b.onnx makes no tensor; check how it was exported",
    ),
    (
        {
            "second": OnnxModel((tensor("middle"),), (OnnxTensor("y", "map", None, usable=False),)),
            "stages": (
                StageDraft("a", "a.onnx", (), None),
                StageDraft("b", "b.onnx", (), (("y", "y"),)),
            ),
        },
        "output 'y' of b.onnx is a map and no tensor; export the model without it (scikit-learn: zipmap",
    ),
    (
        {
            "stages": (
                StageDraft("a", "a.onnx", (("q", "x"),), None),
                StageDraft("b", "b.onnx", (), None),
            )
        },
        "[[stage]] 'a' inputs: a.onnx has no input 'q'; it has x",
    ),
    (
        {
            "stages": (
                StageDraft("a", "a.onnx", (), (("q", "middle"),)),
                StageDraft("b", "b.onnx", (), None),
            )
        },
        "[[stage]] 'a' outputs: a.onnx has no output 'q'; it has middle",
    ),
    (
        {"inputs": (draft("x"), draft("unused", "FP32", (1,)))},
        "[[input]] 'unused' is read by no stage; remove it",
    ),
    ({"inputs": (draft("x", "BYTES"),)}, "a.onnx takes 'x' as FP32[-1, 4], but [[input]] 'x' is BYTES"),
    ({"outputs": (draft("z"),)}, "[[output]] 'z' is made by no stage; the stages make middle, y"),
    (
        {"outputs": (draft("y", "INT64"),)},
        "[[output]] 'y' is INT64 in the contract, but the model makes FP32",
    ),
    (
        {"outputs": (draft("y", shape=(-1, 5)),)},
        "[[output]] 'y' has the shape [-1, 5] in the contract, but the model makes [-1, 4]",
    ),
    (
        {"outputs": (TensorDraft("y", None, None, None, None, ("a", "b", "c")),)},
        "[[output]] 'y' has 3 labels for 4 scores; give one label a score",
    ),
    (
        {"second": OnnxModel((tensor("middle"),), (tensor("y", shape=None),))},
        "[[output]] 'y': the model does not say its rank; add shape = [...]",
    ),
    (
        {
            "second": OnnxModel((tensor("middle"),), (tensor("y", "BOOL"),)),
            "outputs": (TensorDraft("y", None, None, 0.0, 1.0, ()),),
        },
        "[[output]] 'y' is BOOL, which has no range; remove it",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), UNFIT)
def test_what_does_not_fit_is_refused(
    project: Project, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BuildRefusedError) as refused:
        fitted(project, **changes)
    assert message in str(refused.value)
