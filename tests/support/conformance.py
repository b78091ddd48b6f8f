"""The Open Inference Protocol asked in every way that its public client has, for a table of what comes back.

``tritonclient``'s four clients (gRPC and HTTP, each also for asyncio) are used as they are. What none of them can do is
asked by hand: typed contents over gRPC, and HTTP on a unix socket.
"""

import asyncio
import http.client
import json
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from onnx import TensorProto, helper

from agent.adapters.model_server import OtherFronts, ProcessModelServer
from agent.bundle import TensorSpec
from agent.runtime.dtypes import to_raw
from protos import inference_pb2 as oip
from tests.support.onnx_models import BundleMaker, MadeBundle, model_bytes

WAIT_S = 90.0
VERSION = "1.0.0"

DTYPES: Mapping[str, tuple[int, Any]] = {
    "BOOL": (TensorProto.BOOL, np.array([[True, False, True]])),
    "INT8": (TensorProto.INT8, np.array([[-128, 0, 127]], np.int8)),
    "INT16": (TensorProto.INT16, np.array([[-(2**15), 0, 2**15 - 1]], np.int16)),
    "INT32": (TensorProto.INT32, np.array([[-(2**31), 0, 2**31 - 1]], np.int32)),
    "INT64": (TensorProto.INT64, np.array([[-(2**63), 0, 2**63 - 1]], np.int64)),
    "UINT8": (TensorProto.UINT8, np.array([[0, 1, 255]], np.uint8)),
    "UINT16": (TensorProto.UINT16, np.array([[0, 1, 2**16 - 1]], np.uint16)),
    "UINT32": (TensorProto.UINT32, np.array([[0, 1, 2**32 - 1]], np.uint32)),
    "UINT64": (TensorProto.UINT64, np.array([[0, 1, 2**64 - 1]], np.uint64)),
    "FP16": (TensorProto.FLOAT16, np.array([[-65504, 0.1, 6e-8]], np.float16)),
    "FP32": (TensorProto.FLOAT, np.array([[-3.4e38, 0.1, 1e-45]], np.float32)),
    "FP64": (TensorProto.DOUBLE, np.array([[-1.7e308, 0.1, 5e-324]], np.float64)),
    "BYTES": (TensorProto.STRING, np.array([["grün", "", 'a\n"b" \U0001f600']], dtype=object)),
}


def batch(dtype: str) -> Any:
    """Four rows: both dimensions of the models are free."""
    one = DTYPES[dtype][1]
    return np.concatenate([one, one[:, ::-1], one, one])


def echo_bundle(folder: Path, dtype: str) -> MadeBundle:
    """y = x, for one data type, both dimensions free."""
    onnx_type, _ = DTYPES[dtype]
    x, y = (helper.make_tensor_value_info(name, onnx_type, ["batch", "n"]) for name in ("x", "y"))
    return BundleMaker(
        models={"model.onnx": model_bytes([helper.make_node("Identity", ["x"], ["y"])], [x], [y])},
        inputs=[TensorSpec("x", dtype, (-1, -1))],
        outputs=[TensorSpec("y", dtype, (-1, -1))],
        model=model_of(dtype),
        version=VERSION,
    ).write(folder)


def model_of(dtype: str) -> str:
    return f"echo-{dtype.lower()}"


@dataclass(frozen=True)
class Places:
    """Where a server answers."""

    grpc: str
    http: str
    grpc_unix: str
    http_unix: str


class EchoServer:
    """A model server on all its fronts, with one echoing model for each data type. ``grpc_front`` as in the
    configuration."""

    def __init__(self, folder: Path, grpc_front: str = "http2") -> None:
        self._folder = folder
        self.places = Places("", "", f"{folder}/grpc.sock", f"{folder}/http.sock")
        fronts = OtherFronts(
            "127.0.0.1:0", self.places.grpc_unix, self.places.http_unix, grpc_front
        )
        self.server = ProcessModelServer("127.0.0.1:0", fronts=fronts)

    async def __aenter__(self) -> "EchoServer":
        await self.server.start()
        self.places = Places(
            self.server.address,
            self.server.http_address,
            self.places.grpc_unix,
            self.places.http_unix,
        )
        for dtype in DTYPES:
            await self.serve(echo_bundle(self._folder / dtype, dtype))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop()

    async def serve(self, made: MadeBundle) -> None:
        await self.server.load(str(made.path), made.sha256)
        await self.server.activate(made.manifest.model, made.sha256)


CLIENTS: Mapping[str, Any] = {
    "grpc": tritonclient.grpc,
    "grpc.aio": tritonclient.grpc.aio,
    "http": tritonclient.http,
    "http.aio": tritonclient.http.aio,
}


class Client:
    """One of ``tritonclient``'s four, so that all are asked alike. The blocking ones have a thread each."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind, self.module = kind, CLIENTS[kind]
        self._thread = ThreadPoolExecutor(1)
        self._url = url
        self.client: Any = None

    @property
    def is_http(self) -> bool:
        return self.kind.startswith("http")

    async def __aenter__(self) -> "Client":
        self.client = await self._run(lambda: self.module.InferenceServerClient(self._url))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        closing = await self._run(self.client.close)
        if asyncio.iscoroutine(closing):
            await closing
        self._thread.shutdown()

    async def _run(self, what: Callable[[], Any]) -> Any:
        if self.kind.endswith(".aio"):
            return what()
        return await asyncio.get_running_loop().run_in_executor(self._thread, what)

    async def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call one of the client's methods."""
        async with asyncio.timeout(WAIT_S):
            answer = await self._run(lambda: getattr(self.client, method)(*arguments, **named))
            return await answer if asyncio.iscoroutine(answer) else answer

    def tensor(self, array: Any, dtype: str, name: str = "x", *, binary: bool = True) -> Any:
        made = self.module.InferInput(name, list(array.shape), dtype)
        if self.is_http:
            made.set_data_from_numpy(array, binary_data=binary)
        else:
            made.set_data_from_numpy(array)
        return made

    def output(self, name: str, *, binary: bool = True) -> Any:
        if self.is_http:
            return self.module.InferRequestedOutput(name, binary_data=binary)
        return self.module.InferRequestedOutput(name)

    async def said(self, method: str, *arguments: Any) -> Any:
        """Metadata as plain JSON."""
        named = {} if self.is_http else {"as_json": True}
        return await self.ask(method, *arguments, **named)


@dataclass(frozen=True)
class Echo:
    """What came back."""

    array: Any
    id: str
    model: str
    version: str


def plain(array: Any) -> Any:
    """BYTES come back as ``bytes`` or ``str``, by transport: compared as text."""
    if array.dtype != object:
        return array
    texts = [value.decode() if isinstance(value, bytes) else value for value in array.flat]
    made = np.empty(len(texts), dtype=object)
    made[:] = texts
    return made.reshape(array.shape)


async def by_client(client: Client, dtype: str, array: Any, *, binary: bool = True) -> Echo:
    answer = await client.ask(
        "infer",
        model_of(dtype),
        [client.tensor(array, dtype, binary=binary)],
        outputs=[client.output("y", binary=binary)],
        request_id="r-1",
    )
    return _echo(answer)


def _echo(answer: Any) -> Echo:
    said = answer.get_response()
    if isinstance(said, dict):
        return Echo(answer.as_numpy("y"), said["id"], said["model_name"], said["model_version"])
    return Echo(answer.as_numpy("y"), said.id, said.model_name, said.model_version)


async def by_stream(client: Client, dtype: str, array: Any) -> Echo:
    """The blocking client's stream: answers come to a callback on a thread of the client's."""
    loop = asyncio.get_running_loop()
    got: asyncio.Future[Any] = loop.create_future()

    def take(result: Any, error: Any) -> None:
        if not got.done():
            if error is None:
                got.set_result(result)
            else:
                got.set_exception(error)

    await client.ask(
        "start_stream", lambda result, error: loop.call_soon_threadsafe(take, result, error)
    )
    await client.ask(
        "async_stream_infer", model_of(dtype), [client.tensor(array, dtype)], request_id="r-1"
    )
    async with asyncio.timeout(WAIT_S):
        answer = await got
    await client.ask("stop_stream")
    return _echo(answer)


async def by_aio_stream(client: Client, dtype: str, array: Any) -> Echo:
    async def requests() -> Any:
        yield {
            "model_name": model_of(dtype),
            "inputs": [client.tensor(array, dtype)],
            "request_id": "r-1",
        }

    async with asyncio.timeout(WAIT_S):
        async for result, error in client.client.stream_infer(requests()):
            if error is not None:
                raise error
            return _echo(result)
    raise AssertionError("the stream ended without an answer")


_FIELDS = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


def by_typed_contents(address: str, dtype: str, array: Any) -> Echo:
    """gRPC with the protocol's own messages. FP16 has no typed contents: it goes raw, by the protocol's rules."""
    request = oip.ModelInferRequest(model_name=model_of(dtype), id="r-1")
    sent = request.inputs.add(name="x", datatype=dtype, shape=array.shape)
    if dtype == "FP16":
        request.raw_input_contents.append(to_raw(array))
    else:
        values = [it.encode() if isinstance(it, str) else it for it in array.reshape(-1).tolist()]
        getattr(sent.contents, _FIELDS[dtype]).extend(values)
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )
        response = call(request, timeout=WAIT_S)
    output = response.outputs[0]
    if dtype == "FP16":
        got = np.frombuffer(response.raw_output_contents[0], np.float16)
    else:
        assert not response.raw_output_contents
        values = list(getattr(output.contents, _FIELDS[dtype]))
        got = np.array(values, dtype=object if dtype == "BYTES" else array.dtype)
    return Echo(
        got.reshape(tuple(output.shape)), response.id, response.model_name, response.model_version
    )


class UnixConnection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=WAIT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(self._path)


def by_unix_http(path: str, dtype: str, array: Any) -> Echo:
    """JSON over HTTP on the unix socket."""
    body = {
        "id": "r-1",
        "inputs": [{"name": "x", "datatype": dtype, "shape": array.shape, "data": array.tolist()}],
    }
    connection = UnixConnection(path)
    connection.request("POST", f"/v2/models/{model_of(dtype)}/infer", json.dumps(body))
    response = connection.getresponse()
    said = json.loads(response.read())
    connection.close()
    assert response.status == 200, said
    output = said["outputs"][0]
    got = np.array(output["data"], dtype=array.dtype).reshape(output["shape"])
    return Echo(got, said["id"], said["model_name"], said["model_version"])


WAYS = (
    "grpc raw",
    "grpc typed",
    "grpc stream",
    "grpc.aio raw",
    "grpc.aio stream",
    "grpc unix raw",
    "http binary",
    "http json",
    "http.aio binary",
    "http.aio json",
    "http unix json",
)


async def echo(places: Places, way: str, dtype: str, array: Any) -> Echo:
    """Send ``array`` to the model that echoes its type, in one of ``WAYS``."""
    kind, *how = way.split()
    if how == ["typed"]:
        return await asyncio.to_thread(by_typed_contents, places.grpc, dtype, array)
    if way == "http unix json":
        return await asyncio.to_thread(by_unix_http, places.http_unix, dtype, array)
    url = places.http if kind.startswith("http") else places.grpc
    if how[0] == "unix":
        url = f"unix:{places.grpc_unix}"
    async with Client(kind, url) as client:
        if how == ["stream"]:
            stream = by_aio_stream if kind.endswith(".aio") else by_stream
            return await stream(client, dtype, array)
        return await by_client(client, dtype, array, binary=how != ["json"])
