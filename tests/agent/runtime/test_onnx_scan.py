"""What an ONNX file may run and read, found without running or reading it."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from agent.runtime.errors import ModelLoadError
from agent.runtime.onnx_scan import _Malformed, _scan, scan_model
from tests.support.onnx_models import endless_model, floats, log_model, model_bytes, scale_model


def scan(folder: Path, data: bytes) -> None:
    (folder / "model.onnx").write_bytes(data)
    with (folder / "model.onnx").open("rb") as file:
        scan_model(file, "model.onnx")


def changed(data: bytes, change: Callable[[Any], object]) -> bytes:
    model = onnx.load_from_string(data)
    change(model)
    return bytes(model.SerializeToString())


def external(tensor: Any) -> None:
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")


def in_body(change: Callable[[Any], object]) -> bytes:
    """The endless model with something changed inside the body of its loop."""
    return changed(endless_model(), lambda model: change(model.graph.node[0].attribute[0].g))


def test_good_models_pass(tmp_path: Path) -> None:
    for data in (scale_model(), log_model(), endless_model()):
        scan(tmp_path, data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (changed(scale_model(), lambda m: external(m.graph.initializer[0])), "outside the file"),
        (
            in_body(lambda g: external(g.initializer.add(name="w", data_type=1, dims=[1]))),
            "outside",
        ),
        (
            changed(scale_model(), lambda m: setattr(m.graph.node[0], "domain", "evil.ops")),
            "operators of the domain 'evil.ops'",
        ),
        (in_body(lambda g: setattr(g.node[0], "domain", "evil.ops")), "the domain 'evil.ops'"),
        (
            model_bytes(
                [helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")],
                [floats("x")],
                [],
            ),
            "uses the operator EPContext",
        ),
        (changed(scale_model(), lambda m: m.training_info.add()), "training"),
        (b"", "cannot be read"),
        (b"not a model", "is not an ONNX model"),
        (scale_model()[:-3], "is not an ONNX model"),
    ],
)
def test_what_is_not_allowed_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(ModelLoadError) as refused:
        scan(tmp_path, data)
    assert said in str(refused.value)
    assert "model.onnx" in str(refused.value)


def test_functions_of_the_file_itself_are_allowed(tmp_path: Path) -> None:
    def own_function(model: Any) -> None:
        node = helper.make_node("Identity", ["a"], ["b"])
        function = helper.make_function("local", "Same", ["a"], ["b"], [node], model.opset_import)
        model.functions.append(function)
        model.graph.node[0].domain = "local"

    scan(tmp_path, changed(scale_model(), own_function))


def test_deep_nesting_is_refused_and_no_stack_overflow(tmp_path: Path) -> None:
    def wrapped(number: int, content: bytes) -> bytes:
        size = len(content)
        return bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7 & 0x7F]) + content

    graph = b""
    for _ in range(60):  # graph -> node 1 -> attribute 5 -> graph 6
        graph = wrapped(1, wrapped(5, wrapped(6, graph)))
    with pytest.raises(ModelLoadError, match="nested more than 32 deep"):
        scan(tmp_path, wrapped(7, graph))


@given(st.binary(max_size=200))
def test_any_bytes_end_in_an_answer(data: bytes) -> None:
    with contextlib.suppress(_Malformed):  # the only way out
        _scan(data)


@given(st.integers(min_value=0), st.binary(min_size=1, max_size=8))
def test_any_damage_ends_in_an_answer(at: int, damage: bytes) -> None:
    data = io.BytesIO(endless_model())
    data.seek(at % len(data.getvalue()))
    data.write(damage)
    with contextlib.suppress(_Malformed):  # the only way out
        _scan(data.getvalue())
