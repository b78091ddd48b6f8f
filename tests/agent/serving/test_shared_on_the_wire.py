"""A real server with a version beside the active one, asked by tritonclient over both transports."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from agent.adapters.model_server import OtherFronts, ProcessModelServer
from agent.bundle import Observe, TensorSpec
from agent.errors import DeviceError
from agent.ports import ServedWindow
from agent.serving.control import Op
from protos import feedback_pb2, feedback_pb2_grpc
from tests.support.onnx_models import MadeBundle, scale_bundle

LIMIT_S = 60.0
CALLERS = [f"camera-{number}" for number in range(24)]
SCORES = TensorSpec("y", "FP32", (-1, 4), labels=("cat", "dog", "owl", "bee"))


async def both(server: ProcessModelServer, folder: Path) -> tuple[MadeBundle, MadeBundle]:
    """Version 1 doubles and is active; version 2 turns the sign and is loaded."""
    contract = {"outputs": [SCORES], "observe": Observe("y", (), "y", 10.0)}
    made = (
        scale_bundle(folder / "1", 2.0, "1.0.0", **contract),
        scale_bundle(folder / "2", -1.0, "2.0.0", **contract),
    )
    for bundle in made:
        await server.load(str(bundle.path), bundle.sha256)
    await server.activate("scale", made[0].sha256)
    return made


async def share(server: ProcessModelServer, sharing: Mapping[str, Any] | None) -> None:
    child = await server._running_child(Op.SHARE)
    async with asyncio.timeout(LIMIT_S):
        await child.control.ask(Op.SHARE, model="scale", sharing=sharing)


def inputs(module: Any) -> list[Any]:
    sent = module.InferInput("x", [1, 4], "FP32")
    sent.set_data_from_numpy(np.array([[0, 9, 0, 1]], np.float32))
    return [sent]


def version_of(client: Any, module: Any, version: str = "", **how: Any) -> str:
    answer = client.infer("scale", inputs(module), version, client_timeout=LIMIT_S, **how)
    response = answer.get_response()
    said = response["model_version"] if isinstance(response, dict) else response.model_version
    assert answer.as_numpy("y")[0, 1] == (18 if said == "1.0.0" else -9)
    return str(said)


async def by_role(server: ProcessModelServer) -> dict[tuple[str, str], ServedWindow]:
    return {(it.version, it.role): it for it in await server.drain()}


async def test_an_arm_answers_its_callers_on_both_transports(tmp_path: Path) -> None:
    fronts = OtherFronts(http="127.0.0.1:0")
    async with ProcessModelServer("127.0.0.1:0", fronts=fronts) as server:
        _, arm = await both(server, tmp_path)
        sharing = {
            "manifest_sha256": arm.sha256, "role": "arm", "traffic_bp": 5_000,
            "routing_key": "camera", "salt": "rollout-1",
        }  # fmt: skip
        with pytest.raises(DeviceError, match="is not loaded, so it cannot take part as arm"):
            await share(server, {**sharing, "manifest_sha256": "f" * 64})
        await share(server, sharing)
        await server.drain()
        asked = await asyncio.to_thread(ask_everything, server)
        windows = await by_role(server)
        one, two = windows["1.0.0", ""], windows["2.0.0", "arm"]
        assert one.requests + two.requests == asked
        assert one.error_kinds == {"unroutable": 1}
        assert (one.output_counts, two.output_counts) == (
            {"dog": one.requests}, {"cat": two.requests},
        )  # fmt: skip
        assert (one.confidence_count, one.low_confidence) == (one.requests, 0)
        assert (two.confidence_count, two.low_confidence) == (two.requests, two.requests)
        # Each arm is judged by what was said about its own answers.
        assert (one.feedback_correct, two.feedback_correct) == (one.feedback_count, 0)
        assert one.feedback_count + two.feedback_count == len(CALLERS)
        assert (one.counters, two.counters) == (
            {"rescans": one.feedback_count}, {"rescans": two.feedback_count},
        )  # fmt: skip

        await share(server, None)
        with triton.InferenceServerClient(server.address) as client:
            versions = {version_of(client, triton, parameters={"camera": it}) for it in CALLERS}
        assert versions == {"1.0.0"}


def ask_everything(server: ProcessModelServer) -> int:
    """Ask in every way and say what was right. Returns how many requests that were."""
    with triton.InferenceServerClient(server.address) as client:
        chosen = {
            it: version_of(client, triton, request_id=it, parameters={"camera": it})
            for it in CALLERS
        }
        assert set(chosen.values()) == {"1.0.0", "2.0.0"}
        assert version_of(client, triton) == "1.0.0"  # nothing says who asks
        assert version_of(client, triton, "2.0.0") == "2.0.0"
        assert version_of(client, triton, "1.0.0") == "1.0.0"
        assert client.is_model_ready("scale", "2.0.0")
        assert client.get_model_metadata("scale").versions == ["1.0.0", "2.0.0"]
    with triton_http.InferenceServerClient(server.http_address) as client:
        for caller, version in chosen.items():
            assert http_version(client, caller) == version
    with grpc.insecure_channel(server.address) as channel:
        stub = feedback_pb2_grpc.FeedbackServiceStub(channel)
        for caller in CALLERS:
            told = feedback_pb2.FeedbackRequest(model_name="scale", request_id=caller, label="dog")
            stub.Feedback(told, timeout=LIMIT_S)
            counted = feedback_pb2.CountRequest(
                model_name="scale", request_id=caller, counter="rescans"
            )
            stub.Count(counted, timeout=LIMIT_S)
    return 2 * len(CALLERS) + 3


def http_version(client: Any, caller: str) -> str:
    answer = client.infer(
        "scale", inputs(triton_http), request_id=caller, parameters={"camera": caller}
    )
    return str(answer.get_response()["model_version"])


async def test_a_shadow_answers_nobody_and_is_compared(tmp_path: Path) -> None:
    async with ProcessModelServer("127.0.0.1:0") as server:
        _, shadow = await both(server, tmp_path)
        sharing = {"manifest_sha256": shadow.sha256, "role": "shadow", "traffic_bp": 10_000}
        await share(server, sharing)
        with triton.InferenceServerClient(server.address) as client:
            for _ in range(8):
                assert await asyncio.to_thread(version_of, client, triton) == "1.0.0"
            with pytest.raises(InferenceServerException, match="loaded but not active yet"):
                await asyncio.to_thread(version_of, client, triton, "2.0.0")
            assert client.get_model_metadata("scale").versions == ["1.0.0"]
            state = {it.version: it.state for it in client.get_model_repository_index().models}
            assert state == {"1.0.0": "READY", "2.0.0": "UNAVAILABLE"}
        compared = dropped = 0
        async with asyncio.timeout(LIMIT_S):
            while compared + dropped < 8:
                windows = await by_role(server)
                window = windows["2.0.0", "shadow"]
                compared += window.shadow_compared
                dropped += window.shadow_dropped
                assert window.shadow_disagreed == window.shadow_compared == window.requests
                await asyncio.sleep(0.01)
        assert compared > 0

        # The shadow becomes the active version: what it counts now is not a shadow's.
        await server.activate("scale", shadow.sha256)
        with triton.InferenceServerClient(server.address) as client:
            assert await asyncio.to_thread(version_of, client, triton) == "2.0.0"
        windows = await by_role(server)
        assert (windows["2.0.0", ""].requests, windows["1.0.0", ""].requests) == (1, 0)
