"""Models that answer no request and yet behave: a trial and a model server that follow a script.

Rules: what happens on a device follows from the seed, the device and the bundle, never from the
order of events; counters are drawn when they are asked for, so a device without a timer costs
nothing between two looks; a server that died says so through the same port as a real one.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from agent.bundle import Manifest
from agent.errors import DeviceError
from agent.ports import ServedWindow, ServerState, Sharing, TrialResult
from agent.trust.cohort import SLOTS
from simulator.chance import binomial, chance, rng
from simulator.latencies import latency_histogram
from simulator.library import Library, digest_in
from simulator.scenario import ModelBehaviour, Scenario, behaviour_of

__all__ = ["Script", "ScriptedServer", "ScriptedTrial"]

MEBIBYTE: Final = 1024 * 1024
_NOTHING: Final = 1e-9  # a share that is left over by rounding alone
_REFUSALS: Final = {
    "crash": ("trial_crashed", "the trial was ended by SIGSEGV"),
    "golden": (
        "trial_golden_failed",
        "golden case 'scripted': the answer differs by more than allowed",
    ),
    "memory": ("trial_memory", "the trial needed more memory than the bundle states"),
}


@dataclass(slots=True)
class Script:
    """How every bundle behaves in this world; shared by all its devices."""

    scenario: Scenario
    library: Library
    _behaviours: dict[tuple[str, str], ModelBehaviour] = field(default_factory=dict)

    def behaviour(self, manifest_sha256: str, device_id: str) -> ModelBehaviour:
        """The behaviour of a bundle on a device. Raises DeviceError when no device has the bundle."""
        provider = self.scenario.devices.provider(device_id)
        known = self._behaviours.get((manifest_sha256, provider))
        if known is None:
            manifest = self.library.manifest(manifest_sha256)
            bundle = (manifest.model, manifest.version, manifest.device_class)
            known = behaviour_of(self.scenario.models, bundle, provider)
            self._behaviours[manifest_sha256, provider] = known
        return known

    def happens(self, rate: float, device_id: str, manifest_sha256: str, what: str) -> bool:
        """Whether ``what`` befalls this device with this bundle: always the same answer."""
        return chance(self.scenario.devices.seed, device_id, manifest_sha256, what) < rate

    def falls_silent(self, device_id: str, manifest_sha256: str) -> bool:
        """Whether this device reports nothing more once it has committed this bundle."""
        behaviour = self.behaviour(manifest_sha256, device_id)
        return behaviour.silent_after_commit and self.happens(
            behaviour.silent_rate, device_id, manifest_sha256, "silent"
        )


class ScriptedTrial:
    """``agent.ports.Trial`` without a child process."""

    __slots__ = ("_device_id", "_script")

    def __init__(self, script: Script, device_id: str) -> None:
        self._script = script
        self._device_id = device_id

    async def run(self, slot_path: str, manifest: Manifest) -> TrialResult:
        digest = digest_in(slot_path)
        behaviour = self._script.behaviour(digest, self._device_id)
        await asyncio.sleep(behaviour.load_ms / 1000)
        measures = {
            "load_ms": behaviour.load_ms,
            "latency_ms": behaviour.latency_ms,
            "peak_rss_bytes": float(manifest.size_bytes + 64 * MEBIBYTE),
            "golden_cases": float(len(manifest.golden)),
        }
        refusal = _REFUSALS.get(behaviour.trial)
        if refusal is None or not self._script.happens(
            behaviour.trial_rate, self._device_id, digest, "trial"
        ):
            return TrialResult(ok=True, measures=measures)
        return TrialResult(False, refusal[0], refusal[1], measures)


@dataclass(slots=True)
class _Counted:
    """A version that gets requests of a model, its share of them, and since when they have not been counted."""

    manifest_sha256: str
    since_s: float
    role: str = ""
    share: float = 1.0
    windows: int = 0


class ScriptedServer:
    """``agent.ports.ModelServer`` without a process: loads, swaps, counts and dies by the script."""

    __slots__ = (
        "_active",
        "_beside",
        "_changed",
        "_crash",
        "_device_id",
        "_loaded",
        "_past",
        "_script",
        "_state",
    )

    def __init__(self, script: Script, device_id: str) -> None:
        self._script = script
        self._device_id = device_id
        self._state = ServerState(running=True, generation=1, pid=None)
        self._loaded: set[str] = set()
        self._active: dict[str, _Counted] = {}
        self._beside: dict[str, _Counted] = {}
        self._past: list[ServedWindow] = []
        self._changed: asyncio.Future[None] | None = None
        self._crash: asyncio.TimerHandle | None = None

    @property
    def state(self) -> ServerState:
        return self._state

    def active(self) -> tuple[str, ...]:
        """Digests of what answers requests now."""
        return tuple(active.manifest_sha256 for active in self._active.values())

    async def wait_change(self, generation: int) -> ServerState:
        while self._state.generation == generation:
            if self._changed is None:
                self._changed = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._changed)
        return self._state

    async def load(self, slot_path: str, manifest_sha256: str) -> None:
        behaviour = self._script.behaviour(manifest_sha256, self._device_id)
        generation = self._state.generation
        await asyncio.sleep(behaviour.load_ms / 1000)
        if behaviour.crash_after_s == 0 and self._dies(behaviour, manifest_sha256):
            self._die(manifest_sha256)
        if self._state.generation != generation:
            raise DeviceError(
                f"the model server died while loading {slot_path}: {self._state.last_exit}."
            )
        self._loaded.add(manifest_sha256)

    async def activate(self, model: str, manifest_sha256: str) -> None:
        if manifest_sha256 not in self._loaded:
            raise DeviceError(f"{model} {manifest_sha256} is not loaded: load it first.")
        before = self._active.get(model)
        if before is not None and before.manifest_sha256 == manifest_sha256:
            return
        now_s = self._count(model)
        beside = self._beside.get(model)
        if beside is not None and beside.manifest_sha256 == manifest_sha256:
            del self._beside[model]
        arm = self._beside.get(model)
        share = 1.0 - arm.share if arm is not None and arm.role == "arm" else 1.0
        self._active[model] = _Counted(manifest_sha256, now_s, share=share)
        self._begins(manifest_sha256)

    async def share(self, model: str, sharing: Sharing | None) -> None:
        if sharing is not None and sharing.manifest_sha256 not in self._loaded:
            raise DeviceError(f"{model} {sharing.manifest_sha256} is not loaded: load it first.")
        now_s = self._count(model)
        before, active = self._beside.pop(model, None), self._active.get(model)
        if active is not None:
            active.share = 1.0
        if sharing is None or sharing.role == "standby":
            return
        digest, share = sharing.manifest_sha256, sharing.traffic_bp / SLOTS
        self._beside[model] = _Counted(digest, now_s, sharing.role, share)
        if active is not None and sharing.role == "arm":
            active.share = 1.0 - share
        if before is None or before.manifest_sha256 != digest:
            self._begins(digest)

    async def unload(self, model: str, manifest_sha256: str, hold_s: float = 0.0) -> None:
        for counted in (self._active, self._beside):
            held = counted.get(model)
            if held is not None and held.manifest_sha256 == manifest_sha256:
                self._count(model)
                del counted[model]
        self._loaded.discard(manifest_sha256)

    @property
    def memory(self) -> None:
        """Statistical models hold nothing."""
        return None

    async def drain(self) -> Sequence[ServedWindow]:
        for model in {*self._active, *self._beside}:
            self._count(model)
        windows, self._past = self._past, []
        return windows

    def close(self) -> None:
        """Stop: nothing happens any more."""
        self._cancel_crash()

    # --- dying ---

    def _dies(self, behaviour: ModelBehaviour, digest: str) -> bool:
        return self._script.happens(behaviour.crash_rate, self._device_id, digest, "crash")

    def _begins(self, digest: str) -> None:
        """A version gets its first requests; some die of them."""
        behaviour = self._script.behaviour(digest, self._device_id)
        if behaviour.crash_after_s > 0 and self._dies(behaviour, digest):
            self._cancel_crash()
            loop = asyncio.get_running_loop()
            self._crash = loop.call_later(behaviour.crash_after_s, self._die_of, digest)

    def _die_of(self, digest: str) -> None:
        if digest in (*self.active(), *(it.manifest_sha256 for it in self._beside.values())):
            self._die(digest)

    def _die(self, digest: str) -> None:
        """Of this bundle, as a real server says: no other that was on probation is to blame."""
        self._cancel_crash()
        self._loaded.clear()
        self._active.clear()
        self._beside.clear()
        self._past.clear()  # what a dead process had counted is lost
        generation = self._state.generation + 1
        self._state = ServerState(True, generation, None, "ended by SIGSEGV", (digest,))
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)

    def _cancel_crash(self) -> None:
        if self._crash is not None:
            self._crash.cancel()
            self._crash = None

    # --- counting ---

    def _count(self, model: str) -> float:
        """Put aside what the versions of a model were asked since the last look; returns when that was."""
        now_s = time.monotonic()  # one for both, so that their shares of the requests add up
        for counted in (self._active, self._beside):
            if model in counted:
                self._past.append(self._window(model, counted[model], now_s))
        return now_s

    def _window(self, model: str, counted: _Counted, now_s: float) -> ServedWindow:
        """What was served since the last look; ``counted`` begins anew."""
        elapsed_s, counted.since_s = now_s - counted.since_s, now_s
        counted.windows += 1
        digest = counted.manifest_sha256
        scenario = self._script.scenario
        draw = rng(
            scenario.devices.seed, self._device_id, digest, f"{counted.role}{counted.windows}"
        )
        traffic = scenario.traffic
        jitter = 1.0 + traffic.jitter * (2.0 * draw.random() - 1.0)
        rate = traffic.requests_per_s * counted.share
        requests = int(elapsed_s * rate * jitter + draw.random()) if counted.share else 0
        manifest = self._script.library.manifest(digest)
        behaviour = self._script.behaviour(digest, self._device_id)
        objective_ms = manifest.objectives.latency_ms
        latency, over = latency_histogram(draw, requests, behaviour, objective_ms)
        failures = binomial(draw, requests, behaviour.error_rate)
        answered = requests - failures
        compared = answered if counted.role == "shadow" else 0
        told = binomial(draw, answered - compared, behaviour.feedback_share)
        return ServedWindow(
            model=model,
            version=manifest.version,
            manifest_sha256=digest,
            role=counted.role,
            requests=requests,
            failures=failures,
            over_objective=over,
            output_violations=binomial(draw, answered, behaviour.output_violation_rate),
            non_finite=binomial(draw, answered, behaviour.non_finite_rate),
            error_kinds={"scripted_failure": failures} if failures else {},
            latency=latency,
            shadow_compared=compared,
            shadow_disagreed=binomial(draw, compared, behaviour.disagreement_rate),
            feedback_count=told,
            feedback_correct=told - binomial(draw, told, behaviour.wrong_rate),
            output_counts=_dealt(draw, answered, behaviour.outputs),
        )


def _dealt(draw: random.Random, count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """``count`` answers by label, each label with its share by chance; labels that got none are left out."""
    dealt: dict[str, int] = {}
    left, share_left = count, 1.0
    for label, share in shares.items():
        got = binomial(draw, left, min(1.0, share / share_left)) if share_left > _NOTHING else 0
        left, share_left = left - got, share_left - share
        if got:
            dealt[label] = got
    return dealt
