"""The Open Inference Protocol as its public client sees it: every data type in every way, every error, all metadata.

One server answers all of it. ``python -m benchmarks.conformance`` prints the same as a table.
"""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from tritonclient.utils import InferenceServerException

from tests.support.conformance import (
    CLIENTS,
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
from tests.support.conformance_errors import ERRORS, ErrorCase, failing_bundle
from tests.support.onnx_models import BundleMaker

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EchoServer]:
    folder = tmp_path_factory.mktemp("echo")
    async with EchoServer(folder) as server:
        await server.serve(failing_bundle(folder / "gather"))
        candidate = BundleMaker(model="candidate").write(folder / "candidate")
        await server.server.load(str(candidate.path), candidate.sha256)
        yield server


@pytest_asyncio.fixture(params=CLIENTS, loop_scope="module")
async def client(request: pytest.FixtureRequest, served: EchoServer) -> AsyncIterator[Client]:
    kind = request.param
    url = served.places.http if kind.startswith("http") else served.places.grpc
    async with Client(kind, url) as made:
        yield made


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
async def test_every_data_type_comes_back_as_it_went(
    served: EchoServer, way: str, dtype: str
) -> None:
    sent = batch(dtype)
    got = await echo(served.places, way, dtype, sent)
    assert (got.id, got.model, got.version) == ("r-1", model_of(dtype), VERSION)
    assert got.array.dtype == sent.dtype
    assert np.array_equal(plain(got.array), sent)


@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case.name)
async def test_errors_have_the_protocols_codes_and_say_why(client: Client, case: ErrorCase) -> None:
    with pytest.raises(InferenceServerException) as refused:
        await case.provoke(client)
    assert refused.value.status() == case.status(client)
    assert case.says in refused.value.message()


async def test_the_server_says_what_it_is(client: Client) -> None:
    assert await client.ask("is_server_live")
    said = await client.said("get_server_metadata")
    assert said["name"] == "muster"
    assert said["version"]
    assert set(said["extensions"]) >= {"binary_tensor_data", "model_repository"}


async def test_readiness_is_of_each_model_and_of_all(client: Client) -> None:
    assert not await client.ask("is_server_ready"), "one model has no active version"
    assert await client.ask("is_model_ready", "echo-fp32")
    assert await client.ask("is_model_ready", "echo-fp32", VERSION)
    assert not await client.ask("is_model_ready", "echo-fp32", "9")
    assert not await client.ask("is_model_ready", "candidate")
    assert not await client.ask("is_model_ready", "nothing")


@pytest.mark.parametrize("version", ["", VERSION])
async def test_a_model_says_its_contract(client: Client, version: str) -> None:
    said = await client.said("get_model_metadata", "echo-int16", version)
    assert (said["name"], said["versions"]) == ("echo-int16", [VERSION])
    assert said["platform"] == "onnxruntime_onnx"
    for key, name in (("inputs", "x"), ("outputs", "y")):
        (tensor,) = said[key]
        assert (tensor["name"], tensor["datatype"]) == (name, "INT16")
        assert [int(size) for size in tensor["shape"]] == [-1, -1]


async def test_the_index_says_what_is_loaded(client: Client) -> None:
    said = await client.said("get_model_repository_index")
    models = said if client.is_http else said["models"]
    states = {model["name"]: (model["version"], model["state"]) for model in models}
    assert states["candidate"] == ("1.0.0", "UNAVAILABLE")
    assert {states[model_of(dtype)] for dtype in DTYPES} == {(VERSION, "READY")}


async def test_a_version_can_be_asked_for(client: Client) -> None:
    array = DTYPES["FP32"][1]
    answer = await client.ask(
        "infer", "echo-fp32", [client.tensor(array, "FP32")], model_version=VERSION
    )
    assert np.array_equal(answer.as_numpy("y"), array)


async def test_parameters_that_change_nothing_are_taken(client: Client) -> None:
    array = DTYPES["FP32"][1]
    answer = await client.ask(
        "infer", "echo-fp32", [client.tensor(array, "FP32")], priority=1, timeout=10_000_000,
        parameters={"customer": "a", "weight": 1.5, "flag": True},
    )  # fmt: skip
    assert np.array_equal(answer.as_numpy("y"), array)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_requests_may_be_packed(client: Client, algorithm: str) -> None:
    array = np.zeros((64, 64), np.float32)
    names = (
        ("request_compression_algorithm", "response_compression_algorithm")
        if client.is_http
        else ("compression_algorithm",)
    )
    answer = await client.ask(
        "infer",
        "echo-fp32",
        [client.tensor(array, "FP32")],
        **dict.fromkeys(names, algorithm),
    )
    assert np.array_equal(answer.as_numpy("y"), array)


async def test_a_failed_request_does_not_end_a_stream(served: EchoServer) -> None:
    array: Any = DTYPES["FP32"][1]
    async with Client("grpc.aio", served.places.grpc) as client:

        async def requests() -> Any:
            for model in ("echo-fp32", "nothing", "echo-fp32"):
                yield {
                    "model_name": model,
                    "inputs": [client.tensor(array, "FP32")],
                    "request_id": model,
                    "enable_empty_final_response": True,
                }

        got = [
            (
                error.message()
                if error
                else result.get_response().parameters["triton_final_response"].bool_param
            )
            async for result, error in client.client.stream_infer(requests())
        ]
    assert got == [True, "there is no model 'nothing' on this device", True]
