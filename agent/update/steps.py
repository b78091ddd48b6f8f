"""The long work of a deployment before its swap: fetch, verify, try. Each returns what came of it.

Rules kept here:
- A step changes nothing but the piece store and the slot store; the updater owns the journal.
- A step can be run again after any interruption: it looks at what is there first.
- A step never raises for a bad bundle, a bad network or a full disk: that is a result.
- Nothing is tried that was not hashed by this process or sealed by it.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent.bundle import Manifest, manifest_sha256, parse_manifest
from agent.delivery import (
    DiskFullError,
    FetchPorts,
    FetchProgress,
    Offload,
    PieceDamagedError,
    PieceDigestError,
    PieceFetch,
    check_space,
    run_to_end,
)
from agent.errors import AgentError, BundleError, DeviceError, LinkError, TrustError
from agent.ports import MetadataSource, SlotStore, Trial
from agent.update.errors import ManifestMismatchError
from agent.update.journal import Deployment
from agent.update.policy import UpdateLimits
from agent.update.states import Event, Phase

__all__ = ["StepPorts", "StepResult", "Steps"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step. ``event`` None: nothing is decided, run it again after a pause.

    ``counts``: the failure counts towards the limit of attempts (the network's do not).
    """

    event: Event | None
    reason_code: str = ""
    reason: str = ""
    counts: bool = False
    measures: Mapping[str, float] = field(default_factory=dict)
    version: str = ""


@dataclass(frozen=True, slots=True)
class StepPorts:
    """What the steps need of the world."""

    fetch: FetchPorts
    slots: SlotStore
    metadata: MetadataSource
    trial: Trial
    free_bytes: Callable[[], int]


class Steps:
    """The steps, and the manifests of the bundles under way."""

    def __init__(self, ports: StepPorts, limits: UpdateLimits) -> None:
        self._ports = ports
        self._limits = limits
        self._manifests: dict[str, tuple[Manifest, bytes]] = {}
        self._hashed: set[str] = set()
        self._fetched: dict[str, int] = {}

    @property
    def _offload(self) -> Offload:
        return self._ports.fetch.offload

    def bytes_fetched(self, digest: str) -> int:
        """Bytes that came over the network for this bundle since the agent started."""
        return self._fetched.get(digest, 0)

    def known_manifest(self, digest: str) -> Manifest | None:
        """The manifest of a bundle under way whose slot may not be sealed yet."""
        known = self._manifests.get(digest)
        return known[0] if known is not None else None

    def forget(self, digest: str) -> None:
        """The deployment is over."""
        self._manifests.pop(digest, None)
        self._fetched.pop(digest, None)
        self._hashed.discard(digest)

    async def run(self, deployment: Deployment) -> StepResult:
        """Run the step of the deployment's phase (fetch, verify or try)."""
        if deployment.phase is Phase.FETCH:
            return await self._fetch(deployment)
        if deployment.phase is Phase.VERIFY:
            return await self._verify(deployment)
        return await self._try(deployment)

    # --- fetch ------------------------------------------------------------------------------------

    async def _fetch(self, deployment: Deployment) -> StepResult:
        try:
            manifest, _ = await self._manifest_of(deployment)
            await self._fetch_pieces(deployment, manifest)
        except BundleError as error:
            return StepResult(Event.REFUSED, "manifest_refused", str(error))
        except TrustError as error:
            return StepResult(Event.REFUSED, "manifest_untrusted", str(error))
        except DiskFullError as error:
            return StepResult(Event.REFUSED, "disk_full", str(error))
        except PieceDamagedError as error:
            return StepResult(Event.REFUSED, "fetch_damaged", str(error))
        except LinkError as error:
            return StepResult(None, "fetch_waiting", str(error))
        except DeviceError as error:
            return StepResult(None, "fetch_storage", str(error), counts=True)
        return StepResult(Event.FETCHED, version=manifest.version)

    async def _fetch_pieces(self, deployment: Deployment, manifest: Manifest) -> None:
        digest = deployment.manifest_sha256
        if await run_to_end(self._offload, self._ports.slots.manifest, digest) is not None:
            return  # a slot of this bundle is here; verifying it comes next
        pieces = self._ports.fetch.pieces
        missing = [piece for piece in manifest.pieces() if not pieces.has(piece.sha256)]
        check_space(
            f"bundle {deployment.bundle}",
            sum(piece.size for piece in missing) + manifest.size_bytes,
            self._ports.free_bytes(),
            self._limits.fetch.reserve_bytes,
        )
        before = self.bytes_fetched(digest)

        def on_progress(progress: FetchProgress) -> None:
            self._fetched[digest] = before + progress.bytes_fetched

        fetch = PieceFetch(missing, self._ports.fetch, self._limits.fetch, on_progress)
        try:
            await fetch.run()
        finally:
            self._fetched[digest] = before + fetch.bytes_fetched

    async def _manifest_of(self, deployment: Deployment) -> tuple[Manifest, bytes]:
        digest = deployment.manifest_sha256
        known = self._manifests.get(digest)
        if known is not None:
            return known
        metadata = self._ports.metadata
        raw = await run_to_end(self._offload, metadata.get_target, deployment.bundle, digest)
        if raw is None:
            raise LinkError(
                f"the fleet manager does not have the manifest of {deployment.bundle} "
                f"({digest[:12]}…); publish the bundle"
            )
        if len(raw) != deployment.length or manifest_sha256(raw) != digest:
            raise ManifestMismatchError(
                deployment.bundle,
                f"has {len(raw)} bytes with digest {manifest_sha256(raw)[:12]}… where the directive "
                f"says {deployment.length} bytes with digest {digest[:12]}…",
            )
        manifest = parse_manifest(raw)
        if manifest.model != deployment.model:
            raise ManifestMismatchError(
                deployment.bundle,
                f"is of model {manifest.model!r} where the directive says {deployment.model!r}",
            )
        self._manifests[digest] = (manifest, raw)
        return manifest, raw

    # --- verify -----------------------------------------------------------------------------------

    async def _verify(self, deployment: Deployment) -> StepResult:
        digest = deployment.manifest_sha256
        try:
            sealed = await run_to_end(self._offload, self._ports.slots.manifest, digest)
            if sealed is not None:
                return await self._verify_slot(digest)
            manifest, raw = await self._manifest_of(deployment)
            await run_to_end(
                self._offload, self._ports.slots.stage, manifest, raw, self._ports.fetch.pieces
            )
        except PieceDigestError as error:
            return StepResult(Event.DAMAGED, "piece_damaged", str(error))
        except BundleError as error:
            return StepResult(Event.REFUSED, "verify_failed", str(error))
        except DiskFullError as error:
            return StepResult(Event.REFUSED, "disk_full", str(error))
        except TrustError as error:
            return StepResult(Event.REFUSED, "manifest_untrusted", str(error))
        except LinkError as error:  # after a restart the manifest has to be asked for again
            return StepResult(None, "fetch_waiting", str(error))
        except DeviceError as error:
            return StepResult(None, "verify_storage", str(error), counts=True)
        self._hashed.add(digest)
        return StepResult(Event.VERIFIED)

    async def _verify_slot(self, digest: str) -> StepResult:
        try:
            await run_to_end(self._offload, self._ports.slots.verify, digest)
        except AgentError as error:
            # The slot is on our own disk, so whatever is wrong with it: pieces will make a new one.
            self._hashed.discard(digest)
            return StepResult(Event.DAMAGED, "slot_damaged", str(error))
        self._hashed.add(digest)
        return StepResult(Event.VERIFIED)

    # --- try --------------------------------------------------------------------------------------

    async def _try(self, deployment: Deployment) -> StepResult:
        digest = deployment.manifest_sha256
        slots = self._ports.slots
        try:
            if digest not in self._hashed:
                checked = await self._verify_slot(digest)
                if checked.event is not Event.VERIFIED:
                    return checked
            manifest = await run_to_end(self._offload, slots.manifest, digest)
            if manifest is None:
                gone = f"the slot of {deployment.bundle} is gone from the disk"
                return StepResult(None, "slot_damaged", gone, counts=True)
            result = await self._ports.trial.run(slots.path(digest), manifest)
        except DeviceError as error:
            return StepResult(None, "trial_unavailable", str(error), counts=True)
        except BundleError as error:
            return StepResult(Event.REFUSED, "trial_failed", str(error))
        event = Event.TRIED if result.ok else Event.REFUSED
        code = result.reason_code if result.ok else result.reason_code or "trial_failed"
        return StepResult(event, code, result.reason, measures=result.measures)
