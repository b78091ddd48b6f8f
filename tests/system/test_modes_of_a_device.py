"""Shadow, A/B, canary and blue-green on one real device, driven by signed directives and asked by tritonclient."""

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from agent.trust import BundleRelease
from fleet.artifacts.build import build_bundle
from tests.support.bad_models import TRIGGER, nan_when_triggered
from tests.support.bundles import NOW_S, build_tiny, tiny_project
from tests.support.one_device import LIMIT_S, Network, OneDevice, running
from tests.support.signed_fleet import SignedFleet, directive_for

CALLERS = [f"camera-{number}" for number in range(16)]


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return Network(SignedFleet(tmp_path / "fleet", now_s=time.time() - 60))


@pytest.fixture
def releases(tmp_path: Path, network: Network) -> tuple[BundleRelease, BundleRelease]:
    """Version 1.0.0 doubles, 2.0.0 triples."""
    made = (build_tiny(tmp_path, "1.0.0"), build_tiny(tmp_path, "2.0.0", factor=3.0))
    one, two = (network.publish(built) for built in made)
    return one, two


@pytest.fixture
def bad(tmp_path: Path, network: Network) -> BundleRelease:
    """Version 6.6.6 answers its golden case rightly and real inputs with NaN."""
    project = tiny_project(tmp_path / "projects", "6.6.6", factor=1.0, offset=0.0)
    (project / "model.onnx").write_bytes(nan_when_triggered())
    return network.publish(build_bundle(project, tmp_path / "6.6.6", now_s=NOW_S))


def ask(address: str, callers: list[str] = CALLERS) -> dict[str, str]:
    """The version that answered each caller, checked against what it answered."""
    found = {}
    with triton.InferenceServerClient(address) as client:
        sent = triton.InferInput("x", [1, 4], "FP32")
        sent.set_data_from_numpy(np.full((1, 4), 2, np.float32))
        for caller in callers:
            answer = client.infer(
                "tiny", [sent], parameters={"camera": caller}, client_timeout=LIMIT_S
            )
            version = str(answer.get_response().model_version)
            factor = {"1.0.0": 2.0, "2.0.0": 3.0}[version]
            np.testing.assert_allclose(answer.as_numpy("y"), factor * 2 + 0.25)
            found[caller] = version
    return found


async def asked(device: OneDevice) -> dict[str, str]:
    return await asyncio.to_thread(ask, device.server.address)


async def serving_the_first(network: Network, device: OneDevice, one: BundleRelease) -> None:
    network.say(directive_for(one))
    await device.until("the first is committed", lambda: "committed" in device.history("r1"))


async def test_shadow_then_a_b_then_canary(
    tmp_path: Path, network: Network, releases: tuple[BundleRelease, BundleRelease]
) -> None:
    one, two = releases
    stable = directive_for(one)
    async with running(tmp_path, network) as device:
        await serving_the_first(network, device, one)
        rollout = {"number": 2, "percent_bp": 0, "beside_bp": 10_000, "routing_key": "camera"}

        network.say(stable, directive_for(two, mode="shadow", traffic_bp=10_000, **rollout))
        await device.until("it is the shadow", device.updater.beside)
        assert set((await asked(device)).values()) == {"1.0.0"}
        await device.until("a comparison", lambda: sum(compared(device)))
        for window in device.windows("shadow"):
            assert (window.manifest_sha256, window.rollout_id) == (two.sha256, "r2")
            assert window.shadow_compared == window.shadow_disagreed
            assert not window.failures

        network.say(stable, directive_for(two, mode="ab", traffic_bp=5_000, **rollout))
        await device.until("it is an arm", lambda: roles(device) == ["arm"])
        versions = await asked(device)
        assert set(versions.values()) == {"1.0.0", "2.0.0"}
        assert await asked(device) == versions, "a caller swung from one to the other"
        await device.until("a window of the arm", lambda: device.windows("arm"))
        assert device.windows("arm")[0].rollout_id == "r2"

        network.say(stable, directive_for(two, number=2))
        await device.until("it is committed", lambda: "committed" in device.history("r2"))
        assert set((await asked(device)).values()) == {"2.0.0"}
        phases = ["fetch", "verify", "try", "beside", "swap", "probation", "commit", "committed"]
        assert device.history("r2") == phases
        assert not device.updater.beside()


def compared(device: OneDevice) -> list[int]:
    return [window.shadow_compared for window in device.windows("shadow")]


def roles(device: OneDevice) -> list[str]:
    return [bundle.role for bundle in device.updater.beside()]


async def test_blue_green_flips_and_flips_back_without_a_load(
    tmp_path: Path,
    network: Network,
    releases: tuple[BundleRelease, BundleRelease],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two = releases
    stable = directive_for(one)
    async with running(tmp_path, network) as device:
        loads: list[str] = []
        load = device.server.load

        async def counted(slot_path: str, manifest_sha256: str) -> None:
            loads.append(manifest_sha256)
            await load(slot_path, manifest_sha256)

        monkeypatch.setattr(device.server, "load", counted)
        await serving_the_first(network, device, one)
        standby = directive_for(two, 2, mode="blue-green", percent_bp=0, beside_bp=10_000)
        network.say(stable, standby)
        await device.until("it stands by", lambda: roles(device) == ["standby"])
        assert set((await asked(device)).values()) == {"1.0.0"}
        assert loads == [one.sha256, two.sha256]

        network.say(stable, directive_for(two, 2, mode="blue-green"))
        await device.until("the flip", lambda: "committed" in device.history("r2"))
        assert set((await asked(device)).values()) == {"2.0.0"}
        network.say(stable, directive_for(two, 2, mode="blue-green", kind="rollback"))
        await device.until("the flip back", lambda: "reverted" in device.history("r2"))
        assert set((await asked(device)).values()) == {"1.0.0"}
        assert loads == [one.sha256, two.sha256]


async def test_a_bad_arm_is_left_by_the_device_itself_and_a_dead_server_costs_the_shadow(
    tmp_path: Path,
    network: Network,
    releases: tuple[BundleRelease, BundleRelease],
    bad: BundleRelease,
) -> None:
    one, two = releases
    stable, beside = directive_for(one), {"percent_bp": 0, "beside_bp": 10_000}
    async with running(tmp_path, network) as device:
        await serving_the_first(network, device, one)
        arm = directive_for(bad, 2, mode="ab", traffic_bp=5_000, routing_key="camera", **beside)
        network.say(stable, arm)
        await device.until("it is an arm", lambda: roles(device) == ["arm"])
        for _ in range(4):
            await asyncio.to_thread(ask_fiercely, device.server.address)
        await device.until("it is left", lambda: "reverted" in device.history("r2"))
        assert device.events("r2")[-1].reason_code == "arm_non_finite"
        assert set((await asked(device)).values()) == {"1.0.0"}

        network.say(stable, directive_for(two, 3, mode="shadow", traffic_bp=1_000, **beside))
        await device.until("it is the shadow", lambda: roles(device) == ["shadow"])
        pid = device.server.state.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await device.until("the shadow is left", lambda: "refused" in device.history("r3"))
        assert device.events("r3")[-1].reason_code == "server_crashed"
        await device.until("it answers again", lambda: answers(device.server.address))
        assert set((await asked(device)).values()) == {"1.0.0"}


def answers(address: str) -> bool:
    """Whether the model can be asked now."""
    with triton.InferenceServerClient(address) as client:
        try:
            return bool(client.is_model_ready("tiny"))
        except InferenceServerException:
            return False


def ask_fiercely(address: str) -> None:
    """Requests that the bad model answers with NaN; whatever comes back."""
    with triton.InferenceServerClient(address) as client:
        sent = triton.InferInput("x", [1, 4], "FP32")
        sent.set_data_from_numpy(np.full((1, 4), TRIGGER + 1, np.float32))
        for caller in CALLERS:
            with contextlib.suppress(InferenceServerException):
                client.infer("tiny", [sent], parameters={"camera": caller}, client_timeout=LIMIT_S)


async def test_after_a_power_cut_the_shadow_is_back_without_a_word_from_the_fleet(
    tmp_path: Path, network: Network, releases: tuple[BundleRelease, BundleRelease]
) -> None:
    one, two = releases
    async with running(tmp_path, network) as device:
        await serving_the_first(network, device, one)
        shadow = directive_for(
            two, 2, mode="shadow", percent_bp=0, beside_bp=10_000, traffic_bp=100
        )
        network.say(directive_for(one), shadow)
        await device.until("it is the shadow", lambda: roles(device) == ["shadow"])
    network.reports.clear()
    network.silent = True
    async with running(tmp_path, network) as device:
        await device.until("it is back", lambda: roles(device) == ["shadow"])
        assert set((await asked(device)).values()) == {"1.0.0"}
        assert device.history("r2") == ["beside"]
