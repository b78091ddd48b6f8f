"""Counters of the application's own: whom they count for, what is refused, and both transports to a real server."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from agent.adapters.model_server import OtherFronts, ProcessModelServer
from agent.runtime.errors import (
    InputContractError,
    NotReadyError,
    UnknownRequestError,
    UnknownServableError,
)
from agent.runtime.registry import Registry
from agent.runtime.routing import Role, Share
from agent.serving.counting import CountingDesk, CountLimits, CountLog, Said
from agent.serving.errors import OverloadError
from agent.serving.feedback import FeedbackCounts, FeedbackLog, Version
from agent.serving.windows import drained_windows, merged_windows
from protos import feedback_pb2, feedback_pb2_grpc
from tests.support.onnx_models import MadeBundle, scale_bundle

LIMIT_S = 60.0
ONE, TWO = Version("m", "1", "1" * 64), Version("m", "2", "2" * 64, "arm")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[MadeBundle, MadeBundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return scale_bundle(folder / "1", 2.0, "1.0.0"), scale_bundle(folder / "2", 3.0, "2.0.0")


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    yield made
    made.close()


def test_a_count_is_for_the_version_that_answered_or_the_active_one(
    registry: Registry, bundles: tuple[MadeBundle, MadeBundle]
) -> None:
    answers = FeedbackLog()
    desk = CountingDesk(registry, answers)
    with pytest.raises(UnknownServableError, match="no model 'scale' on this device"):
        desk.count("scale", Said("rescans"))
    first, second = bundles
    registry.load(first.path, first.sha256)
    with pytest.raises(NotReadyError):
        desk.count("scale", Said("rescans"))
    registry.load(second.path, second.sha256)
    registry.activate("scale", first.sha256)
    registry.share("scale", Share(second.sha256, Role.ARM, 1))
    arm = Version("scale", "2.0.0", second.sha256, "arm")
    answers.remember(arm, "r-1", [])
    assert desk.count("scale", Said("rescans", 2)).version == "1.0.0"
    assert desk.count("scale", Said("rescans", 3, "r-1")) == arm
    assert desk.count("scale", Said("rescans", 4, "r-1")) == arm  # as often as it happens
    with pytest.raises(UnknownRequestError, match=r"with the id 'r-2' is remembered; count sooner"):
        desk.count("scale", Said("rescans", 1, "r-2"))
    windows = {
        (it["version"], it["role"]): it.get("counters")
        for it in drained_windows(registry, answers, desk.log, {first.sha256: 2})
    }
    assert windows == {("1.0.0", ""): {"rescans": 2}, ("2.0.0", "arm"): {"rescans": 7}}
    assert desk.log.drain() == {}


@pytest.mark.parametrize("name", ["", "a-b", "A", "a" * 41, "ä", "a\n"])
def test_a_name_is_checked(registry: Registry, name: str) -> None:
    with pytest.raises(InputContractError, match="is no name"):
        CountingDesk(registry, FeedbackLog()).count("m", Said(name))


@pytest.mark.parametrize("amount", [-1, 1_000_000_001])
def test_an_amount_is_bounded(registry: Registry, amount: int) -> None:
    with pytest.raises(InputContractError, match="amount must be from 1 to 1000000000"):
        CountingDesk(registry, FeedbackLog()).count("m", Said("a", amount))


def test_names_of_a_model_are_bounded_and_the_refusal_says_which_there_are() -> None:
    log = CountLog(CountLimits(max_names=2))
    for version, name in ((ONE, "a"), (TWO, "b"), (ONE, "a"), (Version("n", "1", "3" * 64), "c")):
        log.add(version, name, 1)
    with pytest.raises(OverloadError, match=r"model 'm' has 2 counters .* use one of a, b"):
        log.add(ONE, "c", 1)
    log.drain()
    with pytest.raises(OverloadError):  # a series does not make room for another
        log.add(ONE, "c", 1)


def test_what_nobody_drains_is_bounded() -> None:
    log = CountLog(CountLimits(max_versions=2, max_models=2, max_total=10))
    for number in range(3):
        log.add(Version(f"m{number}", "1", str(number) * 64), "a", 1)
    log.add(Version("m2", "1", "2" * 64), "a", 99)
    assert [(it.model, counts) for it, counts in log.drain().items()] == [
        ("m1", {"a": 1}),
        ("m2", {"a": 10}),
    ]


def test_windows_and_what_was_said_become_one() -> None:
    window = {"model": "m", "manifest_sha256": ONE.manifest_sha256, "role": "", "requests": 5}
    judged = {ONE: FeedbackCounts(2, 1), TWO: FeedbackCounts(feedback_unknown=1)}
    first, second = merged_windows([window], judged, {ONE: {"a": 1}, TWO: {"b": 2}})
    assert (first["requests"], first["feedback_count"], first["counters"]) == (5, 2, {"a": 1})
    assert (second["version"], second["role"], second["requests"]) == ("2", "arm", 0)
    assert (second["feedback_unknown"], second["counters"]) == (1, {"b": 2})


def post(address: str, body: Any, model: str = "scale") -> tuple[int, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"http://{address}/v2/models/{model}/count"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, raw), timeout=LIMIT_S) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


async def test_over_both_front_ends(bundles: tuple[MadeBundle, MadeBundle]) -> None:
    made = bundles[0]
    async with ProcessModelServer("127.0.0.1:0", fronts=OtherFronts(http="127.0.0.1:0")) as server:
        await server.load(str(made.path), made.sha256)
        await server.activate("scale", made.sha256)
        with triton.InferenceServerClient(server.address) as client:
            sent = triton.InferInput("x", [1, 4], "FP32")
            sent.set_data_from_numpy(np.ones((1, 4), np.float32))
            client.infer("scale", [sent], request_id="r-1")

        http = server.http_address
        counted = (200, {"model_version": "1.0.0"})
        assert post(http, {"counter": "rescans"}) == counted
        assert post(http, {"counter": "rescans", "amount": 4, "id": "r-1"}) == counted
        assert post(http, {"counter": "rescans"}, "nope")[0] == 404
        assert post(http, {"counter": "rescans", "id": "r-2"})[0] == 404
        for body in (
            b"{", b"[]", {}, {"counter": 1}, {"counter": "A"}, {"counter": "a", "amount": True},
            {"counter": "a", "amount": 1.5}, {"counter": "a", "amount": -1}, {"counter": "a", "id": 1},
            {"counter": "a", "n": 1}, b"[" * 4000, b" " * 5000,
        ):  # fmt: skip
            status, answer = post(http, body)
            assert (status, bool(answer["error"])) == (400, True), body

        with grpc.insecure_channel(server.address) as channel:
            call = feedback_pb2_grpc.FeedbackServiceStub(channel).Count

            def tell(model: str = "scale", **said: Any) -> None:
                call(feedback_pb2.CountRequest(model_name=model, **said), timeout=LIMIT_S)

            tell(counter="rescans", request_id="r-1")
            tell(counter="overrides", amount=7)
            for said, code in (
                ({"model": "nope", "counter": "a"}, grpc.StatusCode.NOT_FOUND),
                ({"counter": "a", "request_id": "r-2"}, grpc.StatusCode.NOT_FOUND),
                ({"counter": "a b"}, grpc.StatusCode.INVALID_ARGUMENT),
            ):
                with pytest.raises(grpc.RpcError) as refused:
                    tell(**said)
                assert refused.value.code() is code
            for number in range(14):
                tell(counter=f"c{number}")
            with pytest.raises(grpc.RpcError, match="may have no more") as refused:
                tell(counter="one_more")
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert post(http, {"counter": "one_more"})[0] == 503

        (window,) = await server.drain()
        assert (window.requests, window.counters["rescans"], window.counters["overrides"]) == (
            1,
            6,
            7,
        )
        assert len(window.counters) == 16
