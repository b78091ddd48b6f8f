"""Our own reading and writing of the inference messages against the generated classes: the same arrays, the same
refusals, the same answers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.bundle import Manifest
from agent.runtime.dtypes import NUMPY_OF, to_raw
from agent.runtime.errors import InputContractError
from agent.serving.codec import MessageRequest
from agent.serving.infer_wire import WireRequest, read_wire
from agent.serving.protocol import Answer
from protos import inference_pb2 as oip
from tests.support.onnx_models import BundleMaker

NAMES = st.text(max_size=8)
SHAPES = st.lists(st.integers(-2, 3), max_size=3)
DTYPES = st.sampled_from([*NUMPY_OF, "FLOAT", ""])


@st.composite
def requests(draw: st.DrawFn) -> oip.ModelInferRequest:
    """Mostly usual requests, right and wrong ones."""
    request = oip.ModelInferRequest(
        model_name=draw(NAMES), model_version=draw(NAMES), id=draw(NAMES)
    )
    raw = draw(st.booleans())
    for number in range(draw(st.integers(0, 3))):
        dtype, shape = draw(DTYPES), draw(SHAPES)
        sent = request.inputs.add(name=f"x{number % 2}", datatype=dtype, shape=shape)
        count = max(0, int(np.prod(shape))) + draw(st.sampled_from([0, 0, 0, 1]))
        if raw:
            itemsize = 4 if dtype not in NUMPY_OF or dtype == "BYTES" else NUMPY_OF[dtype].itemsize
            request.raw_input_contents.append(b"\0" * (count * itemsize))
        elif draw(st.booleans()):
            sent.contents.fp32_contents.extend([1.5] * count)
        else:
            sent.contents.fp64_contents.extend([-2.5] * count)
    if draw(st.integers(0, 4)) == 0:
        request.raw_input_contents.append(b"abc")
    for _ in range(draw(st.integers(0, 2))):
        request.outputs.add(name=draw(NAMES))
    return request


def decoded(request: WireRequest | MessageRequest) -> Any:
    try:
        return {
            name: (array.dtype, array.shape, to_raw(array))
            for name, array in request.decode().items()
        }
    except InputContractError as error:
        return str(error)


@settings(max_examples=50, deadline=None)
@given(requests(), st.booleans())
def test_what_is_read_is_the_same(message: oip.ModelInferRequest, changeable: bool) -> None:
    raw = message.SerializeToString()
    mine, theirs = read_wire(bytearray(raw) if changeable else raw), MessageRequest(message)
    if mine is None:
        return
    for field in ("model", "version", "id", "parameters"):
        assert getattr(mine, field) == getattr(theirs, field)
    assert list(mine.outputs) == list(theirs.outputs)
    assert decoded(mine) == decoded(theirs)


def usual(**named: Any) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="m", **named)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(np.arange(4, dtype=np.float32).tobytes())
    return request


def test_the_usual_is_read_here_and_not_copied() -> None:
    message = usual().SerializeToString()
    for shift in range(4):  # the tensor lies as it should in one of four places
        named = oip.ModelInferRequest(model_name="m" * shift, id="r")
        raw = named.SerializeToString() + usual().SerializeToString()
        request = read_wire(raw)
        assert request is not None
        (array,) = request.decode().values()
        assert np.array_equal(array, [[0, 1, 2, 3]])
        assert array.flags.aligned
    assert read_wire(message) is not None


@pytest.mark.parametrize(
    "message",
    [
        usual(parameters={"priority": oip.InferParameter(int64_param=1)}).SerializeToString(),
        usual().SerializeToString() + b"\x48\x01",  # a field that nobody knows
        usual().SerializeToString()[:-1],
        b"\x0a\x02\xff\xff",  # a name that is no text
        b"\x0a",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x2a\x04\x18\x01\x18\x04",  # a shape that is not packed
        b"\x2a\x02\x2a\x00",  # contents of nothing
    ],
)
def test_the_unusual_is_left_to_the_generated_classes(message: bytes) -> None:
    assert read_wire(message) is None


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 80))
def test_no_bytes_break_the_reader(noise: bytes, at: int) -> None:
    raw = bytearray(usual(id="r").SerializeToString())
    raw[at : at + len(noise)] = noise
    request = read_wire(raw)
    if request is not None:
        decoded(request)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return BundleMaker().write(tmp_path_factory.mktemp("made") / "b").manifest


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize(
    "arrays",
    [
        {"y": np.array([[1.5, -2]], np.float32)},
        {"y": np.zeros((0, 3), np.float64), "z": np.array(7.0)},
        {"y": np.arange(6, dtype=np.int64).reshape(2, 3), "z": np.ones(2, np.float32)},
        {"y": np.array([True, False])},
        {"y": np.array([1, 2], np.float16)},
        {"y": np.array(["grün", ""], dtype=object)},
        {"y": np.arange(60_000, dtype=np.float32).reshape(2, 30_000)},
        {"y": np.arange(60_000, dtype=np.float32).reshape(2, 30_000).T},
    ],
    ids=lambda arrays: "-".join(str(array.dtype) + str(array.shape) for array in arrays.values()),
)
def test_answers_are_the_same(manifest: Manifest, arrays: dict[str, Any], typed: bool) -> None:
    request = usual(id="r-1")
    if typed:
        del request.raw_input_contents[:]
        request.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    mine = read_wire(request.SerializeToString())
    assert mine is not None
    answer = Answer(manifest, list(arrays), arrays, "digest")
    theirs = MessageRequest(request)
    assert oip.ModelInferResponse.FromString(mine.encode(answer)) == (
        oip.ModelInferResponse.FromString(theirs.encode(answer))
    )
    assert mine.servable_sha256 == theirs.servable_sha256 == "digest"
