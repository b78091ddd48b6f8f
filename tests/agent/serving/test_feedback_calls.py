"""Feedback as applications give it, over gRPC and REST, to a real server; and what its supervisor drains."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from agent.adapters.model_server import OtherFronts, ProcessModelServer
from agent.bundle import TensorSpec
from protos import feedback_pb2, feedback_pb2_grpc
from tests.support.onnx_models import scale_bundle

LABELS = ("cat", "dog", "owl", "bee")


def ask(address: str, rows: list[list[float]], request_id: str) -> None:
    sent = triton.InferInput("x", [len(rows), 4], "FP32")
    sent.set_data_from_numpy(np.array(rows, np.float32))
    with triton.InferenceServerClient(address) as client:
        client.infer("scale", [sent], request_id=request_id)


def post(address: str, model: str, body: Any) -> tuple[int, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"http://{address}/v2/models/{model}/feedback"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, raw), timeout=90) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


async def test_feedback_over_both_front_ends(tmp_path: Path) -> None:
    made = scale_bundle(tmp_path / "b", outputs=[TensorSpec("y", "FP32", (-1, 4), labels=LABELS)])
    async with ProcessModelServer("127.0.0.1:0", fronts=OtherFronts(http="127.0.0.1:0")) as server:
        await server.load(str(made.path), made.sha256)
        await server.activate("scale", made.sha256)
        ask(server.address, [[0, 9, 0, 0], [0, 0, 0, 9]], "r-1")
        ask(server.address, [[9, 0, 0, 0]], "r-2")
        ask(server.address, [[9, 0, 0, 0]], "")
        await server.drain()

        with grpc.insecure_channel(server.address) as channel:
            call = feedback_pb2_grpc.FeedbackServiceStub(channel).Feedback

            def tell(**said: Any) -> str:
                request = feedback_pb2.FeedbackRequest(model_name="scale", **said)
                return str(call(request, timeout=90).outcome)

            assert tell(request_id="r-1", label="dog") == "correct"
            assert tell(request_id="r-1", label="cat", row=1) == "wrong"
            assert tell(request_id="r-9", label="dog") == "unknown"
            for said, code in (
                ({"request_id": "r-2", "value": 3.0}, grpc.StatusCode.INVALID_ARGUMENT),
                ({"request_id": "r-2"}, grpc.StatusCode.INVALID_ARGUMENT),
                ({"label": "cat"}, grpc.StatusCode.INVALID_ARGUMENT),
            ):
                with pytest.raises(grpc.RpcError) as refused:
                    tell(**said)
                assert refused.value.code() is code
            with pytest.raises(grpc.RpcError) as refused:
                call(feedback_pb2.FeedbackRequest(model_name="x", request_id="a", label="b"))
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND

        http = server.http_address
        assert post(http, "scale", {"id": "r-2", "label": "cat"}) == (200, {"outcome": "correct"})
        assert post(http, "scale", {"id": "r-2", "label": "cat"}) == (200, {"outcome": "unknown"})
        for body in (
            b"{", b"[]", {}, {"id": 3, "label": "x"}, {"id": "a"}, {"id": "a", "label": 1},
            {"id": "a", "value": True}, {"id": "a", "label": "x", "value": 1}, b'{"id":"a","value":NaN}',
            {"id": "a", "label": "x", "row": "1"}, {"id": "a", "label": "x", "rows": 1}, b"[" * 9999,
            b'{"id":"a","value":1' + b"0" * 999 + b"}",
        ):  # fmt: skip
            status, answer = post(http, "scale", body)
            assert (status, bool(answer["error"])) == (400, True), body
        assert post(http, "nope", {"id": "a", "label": "x"})[0] == 404

        (window,) = await server.drain()
        assert (window.feedback_count, window.feedback_correct) == (3, 2)
        assert (window.feedback_unknown, window.requests) == (2, 0)
