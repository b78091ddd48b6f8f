"""The fallback: everything that our own HTTP/2 answers, grpcio answers alike; and only one of them is there."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from tritonclient.utils import InferenceServerException

from agent.adapters.model_server import OtherFronts, ProcessModelServer
from agent.ports import ServerState
from protos import feedback_pb2, feedback_pb2_grpc
from protos import inference_pb2 as oip
from tests.support.conformance import (
    DTYPES,
    VERSION,
    WAYS,
    Client,
    EchoServer,
    batch,
    echo,
    model_of,
    plain,
)
from tests.support.conformance_errors import ERRORS, failing_bundle
from tests.support.onnx_models import BundleMaker

pytestmark = pytest.mark.asyncio(loop_scope="module")
LIMIT_S = 60.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EchoServer]:
    folder = tmp_path_factory.mktemp("echo")
    async with EchoServer(folder, "grpcio") as server:
        await server.serve(failing_bundle(folder / "gather"))
        candidate = BundleMaker(model="candidate").write(folder / "candidate")
        await server.server.load(str(candidate.path), candidate.sha256)
        yield server


@pytest.mark.parametrize("way", [way for way in WAYS if way.startswith("grpc")])
async def test_every_data_type_comes_back_as_it_went(served: EchoServer, way: str) -> None:
    for dtype in DTYPES:
        sent = batch(dtype)
        got = await echo(served.places, way, dtype, sent)
        assert (got.id, got.model, got.version) == ("r-1", model_of(dtype), VERSION), dtype
        assert got.array.dtype == sent.dtype
        assert np.array_equal(plain(got.array), sent), dtype


@pytest.mark.parametrize("kind", ["grpc", "grpc.aio"])
async def test_errors_have_the_protocols_codes_and_say_why(served: EchoServer, kind: str) -> None:
    async with Client(kind, served.places.grpc) as client:
        for case in ERRORS:
            with pytest.raises(InferenceServerException) as refused:
                await case.provoke(client)
            assert refused.value.status() == case.status(client), case.name
            assert case.says in refused.value.message(), case.name


async def test_metadata_index_and_packed_requests(served: EchoServer) -> None:
    array: Any = DTYPES["FP32"][1]
    async with Client("grpc", served.places.grpc) as client:
        assert (await client.said("get_server_metadata"))["name"] == "muster"
        assert not await client.ask("is_server_ready")
        assert await client.ask("is_model_ready", "echo-fp32", VERSION)
        said = await client.said("get_model_metadata", "echo-int16")
        assert said["platform"] == "onnxruntime_onnx"
        models = (await client.said("get_model_repository_index"))["models"]
        assert {model["name"] for model in models} >= {"candidate", "echo-fp32"}
        sent = [client.tensor(array, "FP32")]
        answer = await client.ask("infer", "echo-fp32", sent, compression_algorithm="gzip")
        assert np.array_equal(answer.as_numpy("y"), array)


async def test_feedback_and_what_is_no_message(served: EchoServer) -> None:
    def ask() -> None:
        with grpc.insecure_channel(served.places.grpc) as channel:
            feedback = feedback_pb2_grpc.FeedbackServiceStub(channel).Feedback
            truth = feedback_pb2.FeedbackRequest(model_name="nothing", request_id="a", label="b")
            with pytest.raises(grpc.RpcError) as refused:
                feedback(truth, timeout=LIMIT_S)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
            for path, code in (
                ("/inference.GRPCInferenceService/ModelInfer", grpc.StatusCode.INTERNAL),
                ("/inference.GRPCInferenceService/ModelReady", grpc.StatusCode.INTERNAL),
                ("/inference.GRPCInferenceService/Nothing", grpc.StatusCode.UNIMPLEMENTED),
            ):
                with pytest.raises(grpc.RpcError) as refused:
                    channel.unary_unary(path)(b"\xff\xff", timeout=LIMIT_S)
                assert refused.value.code() is code
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert oip.ServerLiveResponse.FromString(live(b"", timeout=LIMIT_S)).live

    await asyncio.to_thread(ask)


@pytest.mark.parametrize("front", ["http2", "grpcio"])
async def test_grpcio_is_in_the_process_only_where_it_is_chosen(front: str) -> None:
    server = ProcessModelServer("127.0.0.1:0", fronts=OtherFronts(grpc_front=front))
    await server.start()
    mapped = Path(f"/proc/{server.state.pid}/maps").read_text(encoding="utf-8")
    assert ("cygrpc" in mapped) == (front == "grpcio")
    await server.stop()
    assert server.state == ServerState(False, 1, None, "exit code 0")
