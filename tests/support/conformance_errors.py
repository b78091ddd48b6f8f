"""Every error of the protocol: how a client provokes it, the codes of both transports, and what is said."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.bundle import Stage, TensorSpec
from tests.support.conformance import Client
from tests.support.onnx_models import BundleMaker, MadeBundle, gather_model

X = np.array([[1, 2, 3]], np.float32)


def failing_bundle(folder: Path) -> MadeBundle:
    """A model that fails for an index which the contract allows."""
    return BundleMaker(
        models={"model.onnx": gather_model()},
        stages=[Stage("main", "model.onnx", (("index", "index"),), (("y", "y"),))],
        inputs=[TensorSpec("index", "INT64", (-1,))],
        outputs=[TensorSpec("y", "FP32", (-1,))],
        model="gather",
    ).write(folder)


@dataclass(frozen=True)
class ErrorCase:
    """One row of the table."""

    name: str
    provoke: Callable[[Client], Awaitable[Any]]
    grpc: str
    http: int
    says: str

    def status(self, client: Client) -> str:
        return str(self.http) if client.is_http else f"StatusCode.{self.grpc}"


def infer(
    model: str = "echo-fp32", array: Any = X, dtype: str = "FP32", name: str = "x", **named: Any
) -> Callable[[Client], Awaitable[Any]]:
    async def provoke(client: Client) -> Any:
        return await client.ask("infer", model, [client.tensor(array, dtype, name)], **named)

    return provoke


def asked(method: str, *arguments: Any) -> Callable[[Client], Awaitable[Any]]:
    async def provoke(client: Client) -> Any:
        return await client.ask(method, *arguments)

    return provoke


async def twice(client: Client) -> Any:
    return await client.ask("infer", "echo-fp32", [client.tensor(X, "FP32")] * 2)


async def unknown_output(client: Client) -> Any:
    return await client.ask(
        "infer", "echo-fp32", [client.tensor(X, "FP32")], outputs=[client.output("q")]
    )


async def classification(client: Client) -> Any:
    output = client.module.InferRequestedOutput("y", class_count=2)
    return await client.ask("infer", "echo-fp32", [client.tensor(X, "FP32")], outputs=[output])


async def shared_memory(client: Client) -> Any:
    sent = client.module.InferInput("x", [1, 3], "FP32")
    sent.set_shared_memory("region", 12)
    return await client.ask("infer", "echo-fp32", [sent])


async def wrong_size(client: Client) -> Any:
    sent = client.tensor(X, "FP32")
    sent.set_shape([1, 4])
    return await client.ask("infer", "echo-fp32", [sent])


async def unknown_type(client: Client) -> Any:
    sent = client.tensor(X, "FP32")
    if client.is_http:
        sent._datatype = "FLOAT"
    else:
        sent._input.datatype = "FLOAT"
    return await client.ask("infer", "echo-fp32", [sent])


async def not_text(client: Client) -> Any:
    array = np.array([[b"\xff"]], dtype=object)
    return await client.ask("infer", "echo-bytes", [client.tensor(array, "BYTES")])


ERRORS = (
    ErrorCase("unknown model", infer("nothing"), "NOT_FOUND", 404, "no model 'nothing'"),
    ErrorCase("unknown version", infer(model_version="9"), "NOT_FOUND", 404, "no version '9'"),
    ErrorCase(
        "metadata of an unknown model",
        asked("get_model_metadata", "nothing"),
        "NOT_FOUND",
        404,
        "no model 'nothing'",
    ),
    ErrorCase("no active version", infer("candidate"), "UNAVAILABLE", 503, "is active yet"),
    ErrorCase(
        "wrong data type",
        infer(array=X.astype(np.float64), dtype="FP64"),
        "INVALID_ARGUMENT",
        400,
        "input 'x': expected data type FP32, got FP64",
    ),
    ErrorCase("unknown data type", unknown_type, "INVALID_ARGUMENT", 400, "'FLOAT' is unknown"),
    ErrorCase(
        "wrong rank",
        infer(array=X[0]),
        "INVALID_ARGUMENT",
        400,
        "expected shape [any, any], got [3]",
    ),
    ErrorCase("empty batch", infer(array=X[:0]), "INVALID_ARGUMENT", 400, "got [0, 3]"),
    ErrorCase(
        "bytes that do not make up the shape",
        wrong_size,
        "INVALID_ARGUMENT",
        400,
        "FP32 of shape [1, 4] takes 16 bytes, got 12",
    ),
    ErrorCase(
        "wrong input",
        infer(name="z"),
        "INVALID_ARGUMENT",
        400,
        "expected the inputs ['x'], got ['z']",
    ),
    ErrorCase("an input twice", twice, "INVALID_ARGUMENT", 400, "input 'x' came twice"),
    ErrorCase("unknown output", unknown_output, "INVALID_ARGUMENT", 400, "no output 'q'"),
    ErrorCase("text that is not UTF-8", not_text, "INVALID_ARGUMENT", 400, "is not UTF-8 text"),
    ErrorCase(
        "classification",
        classification,
        "INVALID_ARGUMENT",
        400,
        "classification is not supported",
    ),
    ErrorCase(
        "shared memory",
        shared_memory,
        "INVALID_ARGUMENT",
        400,
        "shared_memory_region is not supported",
    ),
    ErrorCase(
        "a sequence",
        infer(sequence_id=7, sequence_start=True),
        "INVALID_ARGUMENT",
        400,
        "sequences are not supported",
    ),
    ErrorCase(
        "the model fails",
        infer("gather", np.array([9]), "INT64", "index"),
        "INTERNAL",
        500,
        "model 'gather': stage 'main' failed",
    ),
    ErrorCase("load", asked("load_model", "echo-fp32"), "PERMISSION_DENIED", 403, "fleet decides"),
    ErrorCase(
        "unload", asked("unload_model", "echo-fp32"), "PERMISSION_DENIED", 403, "fleet decides"
    ),
)
