"""What the agent's core asks of the world: small Protocols, implemented by agent/adapters and by simulator/.

The core (trust, update, health, supervisor) knows these and nothing behind them. All times are
seconds since the epoch (``now_s``) or on a monotonic clock (``monotonic_s``).
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent.bundle import Manifest
from protos import device_pb2, report_pb2

__all__ = [
    "Clock",
    "DownlinkMessage",
    "Link",
    "MetadataSource",
    "ModelServer",
    "PieceChunk",
    "PieceRange",
    "PieceSource",
    "PieceStore",
    "ResourceProbe",
    "ResourceUse",
    "ServedWindow",
    "ServerState",
    "Sharing",
    "SlotStore",
    "SwapMemory",
    "Trial",
    "TrialResult",
]


class Clock(Protocol):
    """Time, so that tests and the simulator can own it."""

    def now_s(self) -> float:
        """Wall clock, seconds since the epoch; may jump."""
        ...

    def monotonic_s(self) -> float:
        """Never goes back; zero is arbitrary."""
        ...

    def utc_offset_minutes(self) -> int:
        """What the device's local time is ahead of UTC now."""
        ...

    async def sleep(self, seconds: float) -> None: ...


# --- messages -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DownlinkMessage:
    """One message from the fleet manager; exactly one field is set.

    ``connected`` comes from the link itself: it has just connected, or has just lost its connection.
    """

    pack: bytes | None = None
    ack: report_pb2.ReportAck | None = None
    connected: bool | None = None


class Link(Protocol):
    """One way to the fleet manager (MQTT or gRPC). It reconnects by itself, with jitter."""

    @property
    def name(self) -> str: ...

    @property
    def connected(self) -> bool: ...

    async def run(self) -> None:
        """Connect and stay connected until cancelled."""
        ...

    def messages(self) -> AsyncIterator[DownlinkMessage]:
        """Messages down, from a bounded queue."""
        ...

    async def send(self, batch: report_pb2.ReportBatch) -> None:
        """Hand a batch over. Not an acknowledgement: that comes as a DownlinkMessage.

        Raises:
            LinkError: not connected, or the transport refused it.
        """
        ...


class MetadataSource(Protocol):
    """Signed metadata and manifests on demand. Blocking: called from a worker thread only."""

    def get_metadata(self, name: str) -> bytes | None:
        """The metadata file ``name`` (``3.snapshot.json``); None when the server has none.

        Raises:
            LinkError: the server cannot be reached or answered with an error.
        """
        ...

    def get_target(self, path: str, sha256: str) -> bytes | None:
        """The target (manifest) at ``path`` with this digest; None when the server has none."""
        ...


# --- bytes ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PieceRange:
    """A piece that is wanted, from ``offset`` on."""

    sha256: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class PieceChunk:
    sha256: str
    offset: int
    data: bytes


class PieceSource(Protocol):
    """Where pieces come from (gRPC)."""

    def fetch(self, ranges: Sequence[PieceRange]) -> AsyncIterator[PieceChunk]:
        """Chunks of the pieces asked for, in order. Raises LinkError when the stream breaks."""
        ...


class PieceStore(Protocol):
    """Verified pieces on the device, by digest, and partial ones on their way."""

    def has(self, sha256: str) -> bool: ...

    def read(self, sha256: str) -> bytes:
        """All bytes of a complete piece, not hashed again. Raises DeviceError when it is not there."""
        ...

    def partial_size(self, sha256: str) -> int:
        """Bytes already held of a piece that is not complete; 0 when none."""
        ...

    def append(self, sha256: str, offset: int, data: bytes) -> None:
        """Add bytes to a partial piece. Raises DeviceError on a full disk or a gap."""
        ...

    def complete(self, sha256: str, size: int) -> None:
        """Verify length and digest and make the piece durable.

        Raises:
            PieceDigestError: the bytes are not the piece; they have been thrown away.
            DeviceError: the disk failed.
        """
        ...

    def discard(self, sha256: str) -> None:
        """Forget a piece, partial or whole."""
        ...

    def keep_only(self, digests: frozenset[str]) -> None:
        """Remove every piece whose digest is not named."""
        ...


class SlotStore(Protocol):
    """Assembled, verified bundles on disk, by manifest digest. A slot is immutable once sealed."""

    def stage(self, manifest: Manifest, raw_manifest: bytes, pieces: PieceStore) -> None:
        """Assemble every file from pieces, verify each file's digest last, seal the slot durably.

        Raises:
            BundleError: a digest does not fit. DeviceError: disk full or unreadable.
        """
        ...

    def path(self, manifest_sha256: str) -> str:
        """The folder of a sealed slot. Raises DeviceError when there is none."""
        ...

    def manifest(self, manifest_sha256: str) -> Manifest | None:
        """The manifest of a sealed slot, re-read and re-parsed; None when there is none."""
        ...

    def verify(self, manifest_sha256: str) -> None:
        """Hash every file again. Raises BundleError or DeviceError, naming the file."""
        ...

    def keep_only(self, digests: frozenset[str]) -> None:
        """Remove every slot whose manifest digest is not named."""
        ...


# --- models ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What a throw-away child process found out about a bundle. ``ok`` False: refused, with a reason."""

    ok: bool
    reason_code: str = ""
    reason: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)


class Trial(Protocol):
    async def run(self, slot_path: str, manifest: Manifest) -> TrialResult:
        """Load, warm up and check a staged bundle apart from everything else. Never raises for a bad
        bundle; raises DeviceError when the child cannot be started at all."""
        ...


@dataclass(frozen=True, slots=True)
class ServedWindow:
    """Counters of one served version since the last drain. ``latency`` is a report_pb2.Histogram."""

    model: str
    version: str
    manifest_sha256: str
    requests: int = 0
    failures: int = 0
    over_objective: int = 0
    input_violations: int = 0
    output_violations: int = 0
    non_finite: int = 0
    error_kinds: Mapping[str, int] = field(default_factory=dict)
    latency: report_pb2.Histogram | None = None
    feedback_count: int = 0
    feedback_correct: int = 0
    feedback_abs_error_sum: float = 0.0
    feedback_unknown: int = 0
    role: str = ""
    """"" answers, "arm" answers its share of an A/B, "shadow" answers nobody."""
    shadow_compared: int = 0
    shadow_disagreed: int = 0
    shadow_dropped: int = 0
    confidence_count: int = 0
    low_confidence: int = 0
    output_counts: Mapping[str, int] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    stuck: int = 0
    """No count: runs that take longer than the latency objective at the moment of the drain."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """``generation`` goes up with each start of the server process: a change means it crashed.

    ``suspects``: manifest digests of what was running or being loaded when it last died, one of which caused it.
    """

    running: bool
    generation: int
    pid: int | None
    last_exit: str = ""
    suspects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """What the model server holds, and what its loaded bundles may hold together by what they state.

    ``shares``: each bundle with its budget, in words.
    """

    held_bytes: int
    allowed_bytes: int
    shares: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sharing:
    """How a loaded version beside the active one takes part.

    ``role``: "shadow" gets copies of requests, "arm" answers its share of them, "standby" waits for a swap.
    ``traffic_bp``: the share of requests that it gets, 0 to 10000. ``routing_key``: the request parameter an arm
    divides by, "" is the request id. ``salt``: id of the rollout; an assignment is sticky within it.
    """

    manifest_sha256: str
    role: str
    traffic_bp: int = 0
    routing_key: str = ""
    salt: str = ""


class ModelServer(Protocol):
    """The process that serves models. Restarted by its adapter; a restart loses what was loaded."""

    @property
    def state(self) -> ServerState: ...

    @property
    def memory(self) -> ModelMemory | None:
        """As of the last ``drain``; None: nothing is loaded, or it is not known."""
        ...

    async def wait_change(self, generation: int) -> ServerState:
        """Return once the process has died or was started anew since ``generation``."""
        ...

    async def load(self, slot_path: str, manifest_sha256: str) -> None:
        """Load the bundle in ``slot_path`` beside what runs, warmed up, not yet answering.

        Raises:
            BundleError: the model cannot be loaded. DeviceError: the server died or timed out.
        """
        ...

    async def activate(self, model: str, manifest_sha256: str) -> None:
        """Swap: from now on requests for ``model`` go to this loaded version. The old one stays loaded."""
        ...

    async def share(self, model: str, sharing: Sharing | None) -> None:
        """Let a loaded version take part beside the active one, in place of the one that did; None: nothing does.

        Raises:
            DeviceError: it is not loaded, or the server died or timed out.
        """
        ...

    async def unload(self, model: str, manifest_sha256: str, hold_s: float = 0.0) -> None:
        """Let a version go once its last lease ends. Unknown versions are no error.

        ``hold_s`` above 0: make room for the next version. Returns once the memory is free; requests for
        the model wait for that version, for so long at most.
        """
        ...

    async def drain(self) -> Sequence[ServedWindow]:
        """Counters since the last drain, one a version that is loaded, then reset."""
        ...


@dataclass(frozen=True, slots=True)
class ResourceUse:
    rss_bytes: int
    cpu_percent: float
    disk_free_bytes: int
    memory_available_bytes: int
    temperature_c: float | None = None
    battery_percent: float | None = None
    """None: there is no battery."""
    on_battery: bool = False


class SwapMemory(Protocol):
    """What this device knows of memory before it loads a bundle. Blocking."""

    def available_bytes(self) -> int | None:
        """What the system can still give, beside all that runs; None: unknown."""
        ...

    def model_bytes(self, manifest_sha256: str) -> int | None:
        """The most memory this bundle took in its trial; None: not measured."""
        ...

    def keep_swap(self, manifest_sha256: str, plan: Mapping[str, Any], /) -> None:
        """Remember how the bundle was brought in, for ``fleet-agent status``. Raises DeviceError."""
        ...


class ResourceProbe(Protocol):
    def read(self) -> ResourceUse: ...


# Kept here so that adapters and simulator need only this module for the wire.
Downlink = device_pb2.Downlink
