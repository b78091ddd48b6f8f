"""The Open Inference Protocol as an unmodified public client sees it, over a real server process."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc as triton
from onnx import TensorProto
from tritonclient.utils import InferenceServerException

from agent.adapters.model_server import ProcessModelServer
from agent.bundle import Objectives, Stage, TensorSpec
from protos import inference_pb2 as oip
from tests.support.onnx_models import (
    BundleMaker,
    MadeBundle,
    gather_model,
    identity_model,
    log_model,
    scale_bundle,
)

X = np.array([[1, 2, 3, 4]], np.float32)


pytestmark = pytest.mark.asyncio(loop_scope="module")


class Remembering(ProcessModelServer):
    """Knows which bundles of ``scale`` it was asked to load."""

    asked: set[str]

    async def load(self, slot_path: str, manifest_sha256: str) -> None:
        self.asked.add(manifest_sha256)
        await super().load(slot_path, manifest_sha256)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def process() -> AsyncIterator[Remembering]:
    """One process for all: its start is what takes time."""
    made = Remembering("127.0.0.1:0")
    made.asked = set()
    async with made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def server(process: Remembering) -> AsyncIterator[ProcessModelServer]:
    """Empty, and with all counters at nothing."""
    yield process
    while process.asked:
        await process.unload("scale", process.asked.pop())
    await process.drain()
    assert await process.drain() == []


async def serve(server: ProcessModelServer, made: MadeBundle) -> triton.InferenceServerClient:
    await server.load(str(made.path), made.sha256)
    await server.activate(made.manifest.model, made.sha256)
    return triton.InferenceServerClient(server.address)


def tensor(array: Any, dtype: str, name: str = "x") -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), dtype)
    made.set_data_from_numpy(array)
    return made


def raw_call(server: ProcessModelServer, method: str, request: Any, answer: Any) -> Any:
    """One call without any client library: the protocol's own path, our messages."""
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=90)


async def test_an_answer_carries_id_and_version(server: ProcessModelServer, tmp_path: Path) -> None:
    client = await serve(server, scale_bundle(tmp_path / "b"))
    answer = client.infer("scale", [tensor(X, "FP32")], request_id="r-1")
    assert np.array_equal(answer.as_numpy("y"), X * 2)
    response = answer.get_response()
    assert (response.id, response.model_name, response.model_version) == ("r-1", "scale", "1.0.0")


async def test_what_the_server_says_about_itself(
    server: ProcessModelServer, tmp_path: Path
) -> None:
    empty = triton.InferenceServerClient(server.address)
    assert empty.is_server_live()
    assert empty.is_server_ready()
    assert not empty.is_model_ready("scale")
    made = scale_bundle(tmp_path / "b")
    await server.load(str(made.path), made.sha256)
    assert not empty.is_server_ready()
    index = empty.get_model_repository_index().models
    assert [(model.name, model.state) for model in index] == [("scale", "UNAVAILABLE")]
    client = await serve(server, made)
    assert client.is_server_ready()
    assert client.is_model_ready("scale", "1.0.0")
    assert not client.is_model_ready("scale", "2.0.0")
    assert client.get_server_metadata().name == "muster"
    metadata = client.get_model_metadata("scale")
    assert (metadata.platform, list(metadata.versions)) == ("onnxruntime_onnx", ["1.0.0"])
    assert (metadata.inputs[0].name, metadata.inputs[0].datatype) == ("x", "FP32")
    assert list(metadata.inputs[0].shape) == [-1, 4]
    index = client.get_model_repository_index().models
    assert [(model.version, model.state) for model in index] == [("1.0.0", "READY")]


@pytest.mark.parametrize(
    ("ask", "code", "said"),
    [
        (lambda c: c.infer("nothing", [tensor(X, "FP32")]), "NOT_FOUND", "no model 'nothing'"),
        (lambda c: c.infer("scale", [tensor(X, "FP32")], "9"), "NOT_FOUND", "no version '9'"),
        (lambda c: c.get_model_metadata("nothing"), "NOT_FOUND", "no model 'nothing'"),
        (
            lambda c: c.infer("scale", [tensor(X.astype(np.float64), "FP64")]),
            "INVALID_ARGUMENT",
            "input 'x': expected data type FP32, got FP64",
        ),
        (
            lambda c: c.infer("scale", [tensor(X[:, :3], "FP32")]),
            "INVALID_ARGUMENT",
            "expected shape [any, 4], got [1, 3]",
        ),
        (
            lambda c: c.infer("scale", [tensor(X, "FP32", "z")]),
            "INVALID_ARGUMENT",
            "expected the inputs ['x'], got ['z']",
        ),
        (
            lambda c: c.infer("scale", [tensor(X, "FP32"), tensor(X, "FP32")]),
            "INVALID_ARGUMENT",
            "input 'x' came twice",
        ),
        (
            lambda c: c.infer(
                "scale", [tensor(X, "FP32")], outputs=[triton.InferRequestedOutput("q")]
            ),
            "INVALID_ARGUMENT",
            "no output 'q'",
        ),
        (
            lambda c: c.infer(
                "scale", [tensor(X, "FP32")], outputs=[triton.InferRequestedOutput("y", 2)]
            ),
            "INVALID_ARGUMENT",
            "classification is not supported",
        ),
        (lambda c: c.load_model("scale"), "PERMISSION_DENIED", "the fleet decides"),
        (lambda c: c.unload_model("scale"), "PERMISSION_DENIED", "the fleet decides"),
    ],
)
async def test_errors_have_the_protocols_codes(
    server: ProcessModelServer, tmp_path: Path, ask: Any, code: str, said: str
) -> None:
    client = await serve(server, scale_bundle(tmp_path / "b"))
    with pytest.raises(InferenceServerException) as refused:
        ask(client)
    assert refused.value.status() == f"StatusCode.{code}"
    assert said in refused.value.message()


async def test_a_candidate_is_unavailable(server: ProcessModelServer, tmp_path: Path) -> None:
    made = scale_bundle(tmp_path / "b")
    await server.load(str(made.path), made.sha256)
    client = triton.InferenceServerClient(server.address)
    with pytest.raises(InferenceServerException, match="no version of model 'scale' is active"):
        client.infer("scale", [tensor(X, "FP32")])


async def test_everything_asked_is_counted_in_its_place(
    server: ProcessModelServer, tmp_path: Path
) -> None:
    made = BundleMaker(
        models={"model.onnx": gather_model()},
        stages=[Stage("main", "model.onnx", (("index", "index"),), (("y", "y"),))],
        inputs=[TensorSpec("index", "INT64", (-1,))],
        outputs=[TensorSpec("y", "FP32", (-1,), maximum=1.0)],
        objectives=Objectives(latency_ms=0.001),
    ).write(tmp_path / "b")
    client = await serve(server, made)
    for index in (0, 1, 3):
        answer = client.infer("scale", [tensor(np.array([index]), "INT64", "index")])
        assert answer.as_numpy("y") == [float(index)]
    with pytest.raises(InferenceServerException, match="stage 'main' failed") as failed:
        client.infer("scale", [tensor(np.array([9]), "INT64", "index")])
    assert failed.value.status() == "StatusCode.INTERNAL"
    with pytest.raises(InferenceServerException, match="expected data type"):
        client.infer("scale", [tensor(X, "FP32", "index")])
    (window,) = await server.drain()
    assert (window.model, window.version, window.manifest_sha256) == ("scale", "1.0.0", made.sha256)
    assert (window.requests, window.failures, window.input_violations) == (4, 1, 1)
    assert (window.over_objective, window.output_violations, window.non_finite) == (3, 1, 0)
    assert sum(window.error_kinds.values()) == 1
    assert window.latency is not None
    assert sum(window.latency.counts) == 3
    (window,) = await server.drain()
    assert (window.requests, window.failures, window.error_kinds) == (0, 0, {})


async def test_outputs_that_are_not_finite_are_counted_and_answered(
    server: ProcessModelServer, tmp_path: Path
) -> None:
    made = BundleMaker(models={"model.onnx": log_model()}).write(tmp_path / "b")
    client = await serve(server, made)
    answer = client.infer("scale", [tensor(-X, "FP32")])
    assert np.isnan(answer.as_numpy("y")).all()
    (window,) = await server.drain()
    assert (window.requests, window.failures, window.non_finite) == (1, 0, 1)


@pytest.mark.parametrize(
    ("onnx_type", "dtype", "array"),
    [
        (TensorProto.STRING, "BYTES", np.array(["grün", ""], dtype=object)),
        (TensorProto.BOOL, "BOOL", np.array([True, False])),
        (TensorProto.FLOAT16, "FP16", np.array([1.5, -2], np.float16)),
        (TensorProto.UINT8, "UINT8", np.array([0, 255], np.uint8)),
        (TensorProto.INT64, "INT64", np.array([-(2**62), 1])),
        (TensorProto.DOUBLE, "FP64", np.array([1e300, 1.0])),
    ],
)
async def test_data_types_over_the_wire(
    server: ProcessModelServer, tmp_path: Path, onnx_type: int, dtype: str, array: Any
) -> None:
    made = BundleMaker(
        models={"model.onnx": identity_model(onnx_type)},
        inputs=[TensorSpec("x", dtype, (-1,))],
        outputs=[TensorSpec("y", dtype, (-1,))],
    ).write(tmp_path / "b")
    client = await serve(server, made)
    got = client.infer("scale", [tensor(array, dtype)]).as_numpy("y")
    if dtype == "BYTES":
        got = np.array([value.decode() for value in got], dtype=object)
    assert np.array_equal(got, array)


async def test_typed_contents_are_answered_with_typed_contents(
    server: ProcessModelServer, tmp_path: Path
) -> None:
    await serve(server, scale_bundle(tmp_path / "b"))
    request = oip.ModelInferRequest(model_name="scale")
    sent = request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    sent.contents.fp32_contents.extend([1, 2, 3, 4])
    response = raw_call(server, "ModelInfer", request, oip.ModelInferResponse)
    assert list(response.outputs[0].contents.fp32_contents) == [2, 4, 6, 8]
    assert not response.raw_output_contents


def infer_request(**changes: Any) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="scale")
    sent = request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    for name, value in changes.items():
        if name == "raw":
            request.raw_input_contents.extend(value)
        elif name == "shape":
            sent.shape[:] = value
        elif name == "floats":
            sent.contents.fp32_contents.extend(value)
        else:
            setattr(sent, name, value)
    return request


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "does not fit the 0 values"),
        ({"floats": [1, 2, 3]}, "shape [1, 4] does not fit the 3 values in fp32_contents"),
        ({"floats": [1], "shape": [-1, -1]}, "does not fit the 1 values"),
        ({"floats": [1], "shape": [2**62, 2**62]}, "does not fit the 1 values"),
        ({"raw": [b"\0" * 15]}, "takes 16 bytes, got 15"),
        ({"raw": [b"", b""]}, "1 inputs came with 2 raw contents"),
        ({"raw": [b"\0" * 16], "floats": [1, 2, 3, 4]}, "came raw and as typed contents"),
        ({"raw": [b"\0" * 16], "datatype": "FLOAT"}, "'FLOAT' is unknown"),
        ({"datatype": "FP16"}, "has no typed contents; send it raw"),
        ({"raw": [b""], "shape": [0, 4]}, "expected shape [any, 4], got [0, 4]"),
    ],
)
async def test_requests_that_do_not_add_up_are_refused(
    server: ProcessModelServer, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    await serve(server, scale_bundle(tmp_path / "b"))
    with pytest.raises(grpc.RpcError) as refused:
        raw_call(server, "ModelInfer", infer_request(**changes), oip.ModelInferResponse)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert said in refused.value.details()
    (window,) = await server.drain()
    assert (window.requests, window.input_violations) == (0, 1)
