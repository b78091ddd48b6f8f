"""A device in memory: virtual time, scripted faults, and checks that hold whatever happens."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from agent.bundle import (
    BundleFile,
    Manifest,
    Objectives,
    Piece,
    Stage,
    TensorSpec,
    manifest_sha256,
)
from agent.delivery import PieceDigestError, run_inline
from agent.errors import BundleError, DeviceError, LinkError
from agent.ports import (
    PieceChunk,
    PieceRange,
    ServedWindow,
    ServerState,
    Sharing,
    SwapMemory,
    TrialResult,
)
from agent.trust import BundleRelease, Decision, Directive, Reason, Verb
from agent.update import JournalContent, UpdateLimits, Updater, UpdaterPorts
from protos import report_pb2


class PowerCut(BaseException):
    """Everything in memory is gone."""


class VirtualClock:
    def __init__(self) -> None:
        self.t = 1_000_000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._n = 0

    def now_s(self) -> float:
        return self.t

    def monotonic_s(self) -> float:
        return self.t

    def utc_offset_minutes(self) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._n += 1
        entry = (self.t + max(seconds, 0.0), self._n, future)
        self._sleepers.append(entry)
        try:
            await future
        finally:
            self._sleepers.remove(entry)

    def advance_to_next(self, limit: float) -> bool:
        due = min((s for s in self._sleepers if not s[2].done()), default=None, key=lambda s: s[:2])
        if due is None or due[0] > limit:
            return False
        self.t = max(self.t, due[0])
        due[2].set_result(None)
        return True


@dataclass(frozen=True)
class Bundle:
    manifest: Manifest
    raw: bytes
    sha256: str
    pieces: dict[str, bytes]

    @property
    def path(self) -> str:
        return self.manifest.path


def make_bundle(version: str, *, model: str = "m", objectives: Objectives | None = None) -> Bundle:
    contents = {
        f"{part}.onnx": b"".join(
            hashlib.sha256(f"{model} {version} {part} {n}".encode()).digest() for n in range(10)
        )
        for part in ("a", "b")
    }
    pieces: dict[str, bytes] = {}
    files = []
    for name, content in contents.items():
        cut = [content[i : i + 100] for i in range(0, len(content), 100)]
        listed = []
        for data in cut:
            digest = hashlib.sha256(data).hexdigest()
            pieces[digest] = data
            listed.append(Piece(digest, len(data)))
        files.append(
            BundleFile(name, len(content), hashlib.sha256(content).hexdigest(), tuple(listed))
        )
    manifest = Manifest(
        model=model,
        version=version,
        device_class="pi",
        created_s=1,
        files=tuple(files),
        stages=(
            Stage("one", "a.onnx", (("x", "x"),), (("h", "h"),)),
            Stage("two", "b.onnx", (("h", "h"),), (("y", "y"),)),
        ),
        inputs=(TensorSpec("x", "FP32", (-1, 4)),),
        outputs=(TensorSpec("y", "FP32", (-1, 2)),),
        objectives=objectives or Objectives(probation_s=60.0),
    )
    raw = manifest.to_bytes()
    return Bundle(manifest, raw, manifest_sha256(raw), pieces)


class Journal:
    """Durable over power cuts; ``cut_at`` pulls the plug before (or after) that save."""

    def __init__(self) -> None:
        self.content = JournalContent()
        self.saves = 0
        self.cut_at: int | None = None
        self.cut_after = False
        self.error: Exception | None = None

    def load(self) -> JournalContent:
        return self.content

    def save(self, record, refusal=None) -> None:
        if self.error is not None:
            raise self.error
        self.saves += 1
        cut = self.saves == self.cut_at
        if cut and not self.cut_after:
            raise PowerCut
        models = {**self.content.models, record.model: record}
        refusals = self.content.refusals + ((refusal,) if refusal else ())
        self.content = JournalContent(models, refusals)
        if cut:
            raise PowerCut


class Pieces:
    def __init__(self) -> None:
        self.whole: dict[str, bytes] = {}
        self.parts: dict[str, bytes] = {}

    def has(self, sha256: str) -> bool:
        return sha256 in self.whole

    def read(self, sha256: str) -> bytes:
        return self.whole[sha256]

    def partial_size(self, sha256: str) -> int:
        return len(self.parts.get(sha256, b""))

    def append(self, sha256: str, offset: int, data: bytes) -> None:
        assert offset == self.partial_size(sha256)
        self.parts[sha256] = self.parts.get(sha256, b"") + data

    def complete(self, sha256: str, size: int) -> None:
        data = self.parts.pop(sha256, b"")
        if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
            raise PieceDigestError(sha256, "wrong digest")
        self.whole[sha256] = data

    def discard(self, sha256: str) -> None:
        self.whole.pop(sha256, None)
        self.parts.pop(sha256, None)

    def keep_only(self, digests: frozenset[str]) -> None:
        self.whole = {k: v for k, v in self.whole.items() if k in digests}
        self.parts = {k: v for k, v in self.parts.items() if k in digests}


class Slots:
    def __init__(self) -> None:
        self.sealed: dict[str, Manifest] = {}
        self.damaged: set[str] = set()
        self.hashed: set[str] = set()  # since the agent or the server started
        self.stage_error: Exception | None = None

    def stage(self, manifest, raw_manifest, pieces) -> None:
        if self.stage_error is not None:
            error, self.stage_error = self.stage_error, None
            raise error
        for piece in manifest.pieces():
            data = pieces.read(piece.sha256) if pieces.has(piece.sha256) else b""
            if hashlib.sha256(data).hexdigest() != piece.sha256:
                pieces.discard(piece.sha256)
                raise PieceDigestError(piece.sha256, "damaged on the disk")
        digest = manifest_sha256(raw_manifest)
        self.sealed[digest] = manifest
        self.damaged.discard(digest)
        self.hashed.add(digest)

    def path(self, digest: str) -> str:
        if digest not in self.sealed:
            raise DeviceError(f"no slot {digest}")
        return f"/slots/{digest}"

    def manifest(self, digest: str):
        return self.sealed.get(digest)

    def verify(self, digest: str) -> None:
        self.path(digest)
        if digest in self.damaged:
            raise BundleError(f"slot {digest} damaged")
        self.hashed.add(digest)

    def keep_only(self, digests: frozenset[str]) -> None:
        self.sealed = {k: v for k, v in self.sealed.items() if k in digests}


class Fleet:
    """Piece source and metadata source in one."""

    def __init__(self) -> None:
        self.bundles: dict[str, Bundle] = {}
        self.offline = False
        self.break_after: list[int] = []  # chunks until each following stream breaks
        self.corrupt: dict[str, int] = {}
        self.chunk = 40
        self.sent = 0

    def add(self, bundle: Bundle) -> Bundle:
        self.bundles[bundle.sha256] = bundle
        return bundle

    def get_metadata(self, name: str) -> bytes | None:
        return None

    def get_target(self, path: str, sha256: str) -> bytes | None:
        if self.offline:
            raise LinkError("offline")
        bundle = self.bundles.get(sha256)
        return bundle.raw if bundle else None

    async def fetch(self, ranges: Sequence[PieceRange]) -> AsyncIterator[PieceChunk]:
        left = self.break_after.pop(0) if self.break_after else None
        for wanted in ranges:
            data = next(
                b.pieces[wanted.sha256] for b in self.bundles.values() if wanted.sha256 in b.pieces
            )
            if self.corrupt.get(wanted.sha256, 0) > 0:
                self.corrupt[wanted.sha256] -= 1
                data = b"\0" * len(data)
            for offset in range(wanted.offset, len(data), self.chunk):
                if self.offline or left == 0:
                    raise LinkError("the stream broke")
                if left is not None:
                    left -= 1
                part = data[offset : offset + self.chunk]
                self.sent += len(part)
                yield PieceChunk(wanted.sha256, offset, part)
        await asyncio.sleep(0)


class Trial:
    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.results: dict[str, list[TrialResult | Exception | type[PowerCut]]] = {}
        self.runs: list[str] = []

    async def run(self, slot_path: str, manifest) -> TrialResult:
        digest = slot_path.removeprefix("/slots/")
        assert digest in self._slots.hashed, "tried without being hashed"
        self.runs.append(digest)
        script = self.results.get(digest)
        result = script.pop(0) if script else TrialResult(True, measures={"load_ms": 3.0})
        if isinstance(result, TrialResult):
            return result
        if result is PowerCut:
            raise PowerCut
        raise result


class Server:
    """``truth`` is what answers requests; what was loaded dies with the generation."""

    def __init__(self, slots: Slots, tried: Callable[[], set[str]]) -> None:
        self._slots = slots
        self._tried = tried
        self.state = ServerState(True, 1, 100)
        self.loaded: set[str] = set()
        self.active: dict[str, str] = {}
        self.load_errors: dict[str, list[Exception | str]] = {}
        self.unloaded: list[str] = []
        self.held: list[tuple[str, str]] = []
        self.loads: list[str] = []
        self.shared: dict[str, Sharing] = {}
        self.shares: list[tuple[str, Sharing | None]] = []

    def crash(self, *, back: bool = True, suspects: tuple[str, ...] = ()) -> None:
        self.loaded.clear()
        self.active.clear()
        self.shared.clear()
        self._slots.hashed.clear()
        if back:
            self.state = ServerState(True, self.state.generation + 1, 101, "SIGSEGV", suspects)
        else:
            self.state = replace(
                self.state, running=False, pid=None, last_exit="SIGSEGV", suspects=suspects
            )

    def come_back(self) -> None:
        self.state = ServerState(
            True, self.state.generation + 1, 102, "SIGSEGV", self.state.suspects
        )

    async def wait_change(self, generation: int) -> ServerState:
        return self.state

    async def load(self, slot_path: str, manifest_sha256: str) -> None:
        if not self.state.running:
            raise DeviceError("server down")
        assert manifest_sha256 in self._slots.hashed, "loaded without being hashed"
        assert manifest_sha256 not in self._slots.damaged, "loaded a damaged slot"
        assert manifest_sha256 in self._tried(), "loaded without having passed a trial"
        self.loads.append(manifest_sha256)
        script = self.load_errors.get(manifest_sha256)
        if script:
            error = script.pop(0)
            if error == "power":
                raise PowerCut
            if error == "crash":
                self.crash(suspects=(manifest_sha256,))
                raise DeviceError("the server died")
            raise error
        self.loaded.add(manifest_sha256)

    async def activate(self, model: str, manifest_sha256: str) -> None:
        assert manifest_sha256 in self.loaded
        self.active[model] = manifest_sha256
        if model in self.shared and self.shared[model].manifest_sha256 == manifest_sha256:
            del self.shared[model]

    async def share(self, model: str, sharing: Sharing | None) -> None:
        if not self.state.running:
            raise DeviceError("server down")
        assert sharing is None or sharing.manifest_sha256 in self.loaded, (
            "shared what is not loaded"
        )
        self.shares.append((model, sharing))
        if sharing is None:
            self.shared.pop(model, None)
        else:
            assert self.active.get(model) not in (None, sharing.manifest_sha256), "beside what?"
            self.shared[model] = sharing

    async def unload(self, model: str, manifest_sha256: str, hold_s: float = 0.0) -> None:
        if hold_s:
            self.held.append((model, manifest_sha256))
        self.loaded.discard(manifest_sha256)
        self.unloaded.append(manifest_sha256)
        if self.active.get(model) == manifest_sha256:
            del self.active[model]
        if model in self.shared and self.shared[model].manifest_sha256 == manifest_sha256:
            del self.shared[model]

    memory = None

    async def drain(self) -> Sequence[ServedWindow]:
        return ()


@dataclass
class World:
    """A device; ``boot`` is a power cycle. Everything but the updater and the server's memory survives."""

    limits: UpdateLimits = field(default_factory=UpdateLimits)
    clock: VirtualClock = field(default_factory=VirtualClock)
    journal: Journal = field(default_factory=Journal)
    pieces: Pieces = field(default_factory=Pieces)
    slots: Slots = field(default_factory=Slots)
    fleet: Fleet = field(default_factory=Fleet)
    free: int = 1 << 40
    memory: SwapMemory | None = None
    events: list[report_pb2.DeploymentEvent] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.trial = Trial(self.slots)
        self.server = Server(self.slots, lambda: set(self.trial.runs))
        self.updater = self._new()

    def _new(self) -> Updater:
        ports = UpdaterPorts(
            journal=self.journal,
            pieces=self.pieces,
            slots=self.slots,
            source=self.fleet,
            metadata=self.fleet,
            trial=self.trial,
            server=self.server,
            clock=self.clock,
            offload=run_inline,
            uniform=lambda: 0.5,
            free_bytes=lambda: self.free,
            memory=self.memory,
        )
        return Updater(ports, self.limits, self.events.append)

    def boot(self) -> None:
        """A new agent over what is on disk; the server starts empty."""
        self.slots.hashed.clear()
        self.server.crash()
        self.updater = self._new()
        self.task = None

    def on(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self.updater.run())

    async def off(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task})
            self.task = None

    async def run_for(self, seconds: float) -> None:
        """Let the updater work for so much virtual time. Raises what it died of."""
        if self.task is None:
            self.on()
        assert self.task is not None
        limit = self.clock.t + seconds
        while True:
            await quiet()
            if self.task.done():
                self.task.result()
            if not self.clock.advance_to_next(limit):
                break
        self.clock.t = limit

    # --- what the fleet says ----------------------------------------------------------------------

    def install(self, bundle: Bundle, rollout: str = "r1", **changes) -> Decision:
        directive = directive_of(bundle, rollout, **changes)
        return Decision(
            bundle.manifest.model,
            Verb.INSTALL,
            Reason.IN_COHORT,
            "in",
            release_of(bundle),
            directive,
        )

    def beside(self, bundle: Bundle, mode: str, rollout: str = "r1", **changes) -> Decision:
        directive = directive_of(
            bundle, rollout, mode=mode, percent_bp=0, beside_bp=10000, **changes
        )
        release = release_of(bundle)
        return Decision(
            bundle.manifest.model, Verb.BESIDE, Reason.BESIDE, "beside", release, directive
        )

    def keep(self, bundle: Bundle, rollout: str = "r1", **changes) -> Decision:
        return self.say(Verb.KEEP, Reason.ALREADY_ACTIVE, bundle, rollout, **changes)

    def revert(self, bundle: Bundle, rollout: str = "r1", to: Bundle | None = None) -> Decision:
        directive = directive_of(bundle, rollout, kind="rollback")
        return Decision(
            bundle.manifest.model,
            Verb.REVERT,
            Reason.FLEET_ROLLBACK,
            "the fleet rolled back",
            release_of(to) if to else None,
            directive,
        )

    def say(self, verb: Verb, reason: Reason, bundle: Bundle, rollout: str = "r1", **changes):
        directive = directive_of(bundle, rollout, **changes)
        return Decision(bundle.manifest.model, verb, reason, reason.value, None, directive)

    # --- what there is to see ---------------------------------------------------------------------

    def window(self, bundle: Bundle, role: str = "", **counts: int) -> None:
        manifest = bundle.manifest
        window = ServedWindow(manifest.model, manifest.version, bundle.sha256, role=role, **counts)
        self.updater.observe([window])

    async def crashed(self, *bundles: Bundle, seconds: float = 1.0) -> None:
        """The server dies and comes back, with these bundles under suspicion."""
        self.server.crash(suspects=tuple(bundle.sha256 for bundle in bundles))
        self.updater.server_changed(self.server.state)
        await self.run_for(seconds)

    def history(self, rollout: str | None = None) -> list[str]:
        """Phases and outcomes reported, in order: ``fetch``, ``committed``, ``refused:code``."""
        found = []
        for event in self.events:
            if rollout is not None and event.rollout_id != rollout:
                continue
            if event.outcome:
                word = report_pb2.Outcome.Name(event.outcome).removeprefix("OUTCOME_").lower()
                plain = word == "committed" and event.reason_code.startswith("probation_passed")
                found.append(word if plain else f"{word}:{event.reason_code}")
            else:
                found.append(report_pb2.Phase.Name(event.phase).removeprefix("PHASE_").lower())
        return found

    def served(self, model: str = "m") -> str | None:
        return self.server.active.get(model)

    def record(self, model: str = "m"):
        return self.journal.content.models[model]

    async def installed(self, bundle: Bundle, rollout: str = "r0") -> None:
        """Bring a bundle to commit."""
        self.fleet.add(bundle)
        self.updater.desire([self.install(bundle, rollout)])
        await self.run_for(bundle.manifest.objectives.probation_s + 30)
        assert self.served(bundle.manifest.model) == bundle.sha256
        assert not self.updater.deployments()


async def quiet() -> None:
    """Until every task waits for time or for us."""
    for _ in range(100_000):
        await asyncio.sleep(0)
        if not asyncio.get_running_loop()._ready:  # nothing in the standard library says it openly
            return
    raise AssertionError("the updater does not come to rest")


def directive_of(bundle: Bundle, rollout: str, **changes) -> Directive:
    made = Directive(
        id=rollout,
        number=int(rollout[1:]),
        model=bundle.manifest.model,
        bundle=bundle.path,
        sha256=bundle.sha256,
        length=len(bundle.raw),
        percent_bp=10000,
    )
    return replace(made, **changes)


def release_of(bundle: Bundle) -> BundleRelease:
    return BundleRelease(
        path=bundle.path,
        sha256=bundle.sha256,
        length=len(bundle.raw),
        model=bundle.manifest.model,
        version=bundle.manifest.version,
        device_class="pi",
        release=1,
        signed_at_s=1,
    )


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.off()


@pytest.fixture
def new_world() -> type[World]:
    return World


@pytest.fixture
def bundle_of() -> Callable[..., Bundle]:
    return make_bundle


@pytest.fixture
def power_cut() -> type[PowerCut]:
    return PowerCut
