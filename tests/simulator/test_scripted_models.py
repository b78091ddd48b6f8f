"""The scripted trial and model server: the same ports as the real ones, by the script."""

import asyncio
import random

import pytest

from agent.bundle import BundleFile, Manifest, Objectives, Piece, Stage, TensorSpec
from agent.errors import DeviceError
from agent.ports import ServedWindow, Sharing
from simulator.latencies import latency_histogram
from simulator.library import SLOT_SCHEME, Library
from simulator.models import Script, ScriptedServer, ScriptedTrial
from simulator.scenario import ModelBehaviour, parse_scenario


class Seconds:
    """The time by which a scripted server counts; it stands still until told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def step(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Seconds:
    made = Seconds()
    monkeypatch.setattr("simulator.models.time", made)
    return made


DEVICES = [f"sim-{number:04}" for number in range(200)]


def manifest(version: str = "1.0.0") -> Manifest:
    digest = "ab" * 32
    return Manifest(
        model="vad",
        version=version,
        device_class="edge",
        created_s=0,
        files=(BundleFile("m.onnx", 3, digest, (Piece(digest, 3),)),),
        stages=(Stage("m", "m.onnx", (("x", "x"),), (("y", "y"),)),),
        inputs=(TensorSpec("x", "FP32", (1,)),),
        outputs=(TensorSpec("y", "FP32", (1,)),),
        objectives=Objectives(latency_ms=50.0),
    )


def script_of(text: str, *versions: str) -> tuple[Script, list[str]]:
    library = Library()
    digests = [
        library.add(manifest(version), manifest(version).to_bytes())
        for version in versions or ("1.0.0",)
    ]
    return Script(parse_scenario(text), library), digests


async def serving(text: str, device: str = "sim-0001") -> tuple[ScriptedServer, str]:
    script, (digest,) = script_of(text)
    server = ScriptedServer(script, device)
    await server.load(SLOT_SCHEME + digest, digest)
    await server.activate("vad", digest)
    return server, digest


@pytest.mark.parametrize(
    ("trial", "code"),
    [
        ("ok", ""),
        ("crash", "trial_crashed"),
        ("golden", "trial_golden_failed"),
        ("memory", "trial_memory"),
    ],
)
async def test_a_trial_ends_as_scripted(trial, code):
    script, (digest,) = script_of(f"[[model]]\ntrial = '{trial}'\nload_ms = 0")
    result = await ScriptedTrial(script, "sim-0001").run(SLOT_SCHEME + digest, manifest())
    assert (result.ok, result.reason_code) == (not code, code)


async def test_a_trial_rate_chooses_devices_always_the_same_ones():
    text = "[[model]]\ntrial = 'golden'\ntrial_rate = 0.25\nload_ms = 0"
    refused = []
    for _ in range(2):
        script, (digest,) = script_of(text)
        results = [
            await ScriptedTrial(script, device).run(SLOT_SCHEME + digest, manifest())
            for device in DEVICES
        ]
        refused.append([result.ok for result in results])
    assert refused[0] == refused[1]
    assert 25 < refused[0].count(False) < 75


async def test_a_served_model_has_counters_that_are_reset(seconds):
    server, digest = await serving(
        "[traffic]\nrequests_per_s = 100000\n[[model]]\nload_ms = 0\nerror_rate = 0.1"
    )
    seconds.step(0.02)
    (window,) = await server.drain()
    assert window.manifest_sha256 == digest
    assert 500 < window.requests < 5000
    assert 0.05 < window.failures / window.requests < 0.15
    assert window.error_kinds == {"scripted_failure": window.failures}
    assert sum(window.latency.counts) == window.requests
    (after,) = await server.drain()
    assert after.requests <= 1  # no time has passed: what remains of a request by chance


async def test_what_is_swapped_out_is_still_counted_once(seconds):
    script, (old, new) = script_of(
        "[traffic]\nrequests_per_s = 100000\n[[model]]\nload_ms = 0", "1.0.0", "2.0.0"
    )
    server = ScriptedServer(script, "sim-0001")
    for digest in (old, new):
        await server.load(SLOT_SCHEME + digest, digest)
    await server.activate("vad", old)
    seconds.step(0.01)
    await server.activate("vad", new)
    windows = await server.drain()
    assert [window.manifest_sha256 for window in windows] == [old, new]
    assert windows[0].requests > 0
    assert [window.version for window in await server.drain()] == ["2.0.0"]
    await server.unload("vad", new)
    await server.drain()
    assert await server.drain() == []


BUSY = "[traffic]\nrequests_per_s = 100000\njitter = 0\n[[model]]\nload_ms = 0\n"


async def two_held(text: str = BUSY) -> tuple[ScriptedServer, str, str]:
    """Version 1 is active, version 2 is loaded."""
    script, (old, new) = script_of(text, "1.0.0", "2.0.0")
    server = ScriptedServer(script, "sim-0001")
    for digest in (old, new):
        await server.load(SLOT_SCHEME + digest, digest)
    await server.activate("vad", old)
    return server, old, new


async def by_role(server: ScriptedServer) -> dict[str, ServedWindow]:
    await asyncio.sleep(0.02)
    return {window.role: window for window in await server.drain()}


async def test_an_arm_answers_its_share_of_the_requests():
    server, old, new = await two_held()
    await server.share("vad", Sharing(new, "arm", 2500, "", "r1"))
    await server.drain()
    windows = await by_role(server)
    assert {role: it.manifest_sha256 for role, it in windows.items()} == {"": old, "arm": new}
    assert windows["arm"].requests == pytest.approx(windows[""].requests / 3, rel=0.1)
    assert sum(windows["arm"].latency.counts) == windows["arm"].requests
    await server.share("vad", None)
    await server.drain()
    assert set(await by_role(server)) == {""}


async def test_a_shadow_is_compared_and_takes_nothing_from_what_answers():
    server, _, new = await two_held(BUSY + "disagreement_rate = 0.5\nerror_rate = 0.1")
    await server.share("vad", Sharing(new, "shadow", 5000))
    await server.drain()
    windows = await by_role(server)
    shadow, active = windows["shadow"], windows[""]
    assert shadow.requests == pytest.approx(active.requests / 2, rel=0.1)
    assert shadow.shadow_compared == shadow.requests - shadow.failures
    assert 0.3 < shadow.shadow_disagreed / shadow.shadow_compared < 0.7
    assert active.shadow_compared == 0


async def test_a_standby_gets_nothing_until_it_is_activated():
    server, _, new = await two_held()
    await server.share("vad", Sharing(new, "standby"))
    await server.drain()
    assert set(await by_role(server)) == {""}
    await server.activate("vad", new)
    await server.drain()
    windows = await by_role(server)
    assert [(it.role, it.manifest_sha256) for it in windows.values()] == [("", new)]


async def test_an_arm_that_is_activated_answers_everything():
    server, _, new = await two_held()
    await server.share("vad", Sharing(new, "arm", 5000))
    await server.activate("vad", new)
    await server.drain()
    windows = await by_role(server)
    assert set(windows) == {""}
    assert windows[""].manifest_sha256 == new
    await server.unload("vad", new)
    await server.drain()
    assert await server.drain() == []


async def test_what_is_beside_takes_the_server_down_like_what_answers():
    text = "[[model]]\nversion = '2.0.0'\ncrash_after_s = 0.01\nload_ms = 0\n[[model]]\nload_ms = 0"
    server, _, new = await two_held(text)
    await server.share("vad", Sharing(new, "standby"))
    await server.share("vad", Sharing(new, "shadow", 1))
    async with asyncio.timeout(60):
        assert (await server.wait_change(1)).generation == 2
    assert await server.drain() == []
    with pytest.raises(DeviceError, match="not loaded"):
        await server.share("vad", Sharing(new, "shadow", 1))


async def test_only_what_is_loaded_can_be_activated():
    script, (digest,) = script_of("")
    with pytest.raises(DeviceError, match="not loaded"):
        await ScriptedServer(script, "sim-0001").activate("vad", digest)


async def test_a_crash_while_loading_is_seen_as_one():
    script, (digest,) = script_of("[[model]]\ncrash_after_s = 0\nload_ms = 0")
    server = ScriptedServer(script, "sim-0001")
    watcher = asyncio.create_task(server.wait_change(server.state.generation))
    await asyncio.sleep(0)
    with pytest.raises(DeviceError, match="died while loading"):
        await server.load(SLOT_SCHEME + digest, digest)
    state = await watcher
    assert (state.running, state.generation, state.last_exit) == (True, 2, "ended by SIGSEGV")


async def test_a_crash_after_the_swap_loses_what_was_loaded():
    server, digest = await serving("[[model]]\ncrash_after_s = 0.01\nload_ms = 0")
    async with asyncio.timeout(60):
        state = await server.wait_change(1)
    assert state.generation == 2
    assert state.suspects == (digest,)
    assert server.active() == ()
    with pytest.raises(DeviceError):
        await server.activate("vad", digest)


async def test_a_device_that_is_spared_does_not_crash():
    server, _ = await serving("[[model]]\ncrash_after_s = 0.001\ncrash_rate = 0\nload_ms = 0")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await server.wait_change(1)


def test_silence_falls_on_the_share_that_was_asked_for():
    script, (digest,) = script_of("[[model]]\nsilent_after_commit = true\nsilent_rate = 0.5")
    silent = sum(script.falls_silent(device, digest) for device in DEVICES)
    assert 70 < silent < 130
    script, (digest,) = script_of("")
    assert not script.falls_silent("sim-0001", digest)


async def test_answers_are_counted_by_label_and_told_right_or_wrong(seconds):
    server, _ = await serving(
        "[traffic]\nrequests_per_s = 100000\n[[model]]\nload_ms = 0\nerror_rate = 0.1\n"
        "feedback_share = 0.5\nwrong_rate = 0.2\noutputs = { a = 0.7, b = 0.3 }"
    )
    seconds.step(0.1)
    (window,) = await server.drain()
    answered = window.requests - window.failures
    assert sum(window.output_counts.values()) == answered > 5000
    assert window.output_counts["a"] / answered == pytest.approx(0.7, abs=0.03)
    assert window.feedback_count / answered == pytest.approx(0.5, abs=0.03)
    right = window.feedback_correct / window.feedback_count
    assert right == pytest.approx(0.8, abs=0.03)


async def test_nobody_sees_a_shadows_answers_so_nobody_tells_it():
    server, _, new = await two_held(BUSY + "feedback_share = 1.0")
    await server.share("vad", Sharing(new, "shadow", 5000))
    await server.drain()
    windows = await by_role(server)
    assert windows["shadow"].requests > 0
    assert windows["shadow"].feedback_count == 0
    assert windows[""].feedback_count == windows[""].requests


def test_a_bundle_that_is_bad_on_one_provider_is_good_on_the_others():
    script, (digest,) = script_of(
        "[devices]\nproviders = 'cpu,cuda'\n[[model]]\nprovider = 'cuda'\nerror_rate = 0.5"
    )
    rates = {device: script.behaviour(digest, device).error_rate for device in DEVICES}
    on_cuda = [d for d in DEVICES if script.scenario.devices.provider(d) == "cuda"]
    assert 50 < len(on_cuda) < 150
    assert all(rates[device] == (0.5 if device in on_cuda else 0.0) for device in DEVICES)


@pytest.mark.parametrize("requests", [1, 7, 64, 65, 1000, 50_000])
def test_a_latency_histogram_holds_every_request(requests):
    behaviour = ModelBehaviour(latency_ms=10, latency_spread=0.5, over_objective_rate=0.2)
    histogram, over = latency_histogram(random.Random(1), requests, behaviour, 50.0)
    assert sum(histogram.counts) == requests
    assert 0 <= over <= requests
    assert histogram.max > 0
    if requests >= 1000:
        assert over / requests == pytest.approx(0.2, abs=0.04)
        usual = 0.8 * 0.010 * 1.133  # the mean of a log-normal is exp(sigma^2 / 2) times its median
        slow = 0.2 * 0.050 * 1.443  # mean of 2^u, u even over [0, 1], is 1 / ln 2
        assert histogram.sum / requests == pytest.approx(usual + slow, rel=0.1)


def test_a_slow_model_is_over_its_objective_without_being_told_to():
    behaviour = ModelBehaviour(latency_ms=80)
    _, over = latency_histogram(random.Random(1), 1000, behaviour, 50.0)
    assert over > 800


def test_no_requests_have_no_histogram():
    assert latency_histogram(random.Random(1), 0, ModelBehaviour(), 50.0) == (None, 0)
