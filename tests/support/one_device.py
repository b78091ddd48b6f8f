"""One device in this process: the agent's own parts over its real adapters, and a link that is a queue.

Real: signed metadata and its verification, journal, slots and pieces on the disk, trials and the model server in
their own processes. Pretended: the network. ``say`` signs directives and hands the pack over.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

from agent.adapters.clock import SystemClock
from agent.adapters.inbox import Inbox
from agent.adapters.journal import SqliteJournal
from agent.adapters.model_server import ProcessModelServer
from agent.adapters.piece_store import FilePieceStore
from agent.adapters.slot_store import FolderSlotStore
from agent.adapters.trial import ProcessTrial
from agent.adapters.trust_store import SqliteTrustStore
from agent.bundle.folder import read_bundle
from agent.errors import LinkError
from agent.health.pace import PaceLimits
from agent.health.spool import MemorySpool
from agent.inventory import read_machine
from agent.ports import DownlinkMessage, PieceChunk, PieceRange, ResourceUse
from agent.supervisor import Supervisor, SupervisorLimits, SupervisorPorts
from agent.trust import BundleRelease, Directive
from agent.trust.refresh import TrustRefresher
from agent.trust_keeper import TrustKeeperLimits, TrustPorts
from agent.trust_view import RealRefresh, read_view
from agent.update import Updater, UpdaterPorts
from agent.update.policy import UpdateLimits
from fleet.artifacts.build import BuildResult
from fleet.repository import ReleaseEntry, key_path, sign_release
from protos import report_pb2
from tests.support.signed_fleet import SignedFleet

__all__ = ["Network", "OneDevice", "running"]

LIMIT_S = 120.0


class Network:
    """The fleet manager as the device sees it: metadata, manifests, pieces, and where reports go."""

    name = "queue"
    connected = True

    def __init__(self, fleet: SignedFleet) -> None:
        self.fleet = fleet
        self.inbox = Inbox(1000)
        self.reports: list[report_pb2.Report] = []
        self.changed = asyncio.Event()
        self.silent = False
        """It says nothing: no metadata, no manifests."""
        self._pieces: dict[str, bytes] = {}

    def publish(self, built: BuildResult) -> BundleRelease:
        """Sign a built bundle into the release role, and offer its pieces."""
        manifest, raw = read_bundle(built.path)
        for file in manifest.files:
            data, at = (built.path / file.name).read_bytes(), 0
            for piece in file.pieces:
                self._pieces[piece.sha256] = data[at : at + piece.size]
                at += piece.size
        entry = ReleaseEntry(
            model=manifest.model, version=manifest.version, device_class=manifest.device_class
        )
        fleet = self.fleet
        current, _ = fleet.repository.release_metadata()
        signed = sign_release(current, key_path(fleet.home, "release"), entry, raw, fleet.now_s)
        fleet.manifests[sha256(raw).hexdigest()] = raw
        fleet.repository.publish(signed, fleet.now_s)
        return fleet.repository.releases()[entry.path]

    def say(self, *directives: Directive) -> None:
        """Sign these directives, and nothing else, and send the pack."""
        self.inbox.put(DownlinkMessage(pack=self.fleet.direct(*directives)))

    # --- agent.ports.Link -------------------------------------------------------------------------

    def messages(self) -> AsyncIterator[DownlinkMessage]:
        return self.inbox.messages()

    async def run(self) -> None:
        self.inbox.put(DownlinkMessage(connected=True))
        await asyncio.Event().wait()

    async def send(self, batch: report_pb2.ReportBatch) -> None:
        self.reports += batch.reports
        ids = [report_pb2.ReportId(boot_id=it.boot_id, seq=it.seq) for it in batch.reports]
        self.inbox.put(DownlinkMessage(ack=report_pb2.ReportAck(ids=ids)))
        self.changed.set()

    # --- agent.ports.MetadataSource and PieceSource -----------------------------------------------

    def get_metadata(self, name: str) -> bytes | None:
        if self.silent:
            raise LinkError("nobody answers")
        return self.fleet.repository.metadata(name)

    def get_target(self, path: str, sha256: str) -> bytes | None:
        return self.fleet.repository.target(path, sha256)

    async def fetch(self, ranges: Sequence[PieceRange]) -> AsyncIterator[PieceChunk]:
        for wanted in ranges:
            data = self._pieces[wanted.sha256][wanted.offset :]
            yield PieceChunk(wanted.sha256, wanted.offset, data)


class _Resources:
    def read(self) -> ResourceUse:
        return ResourceUse(1, 1.0, 1 << 40, 1 << 40)


class OneDevice:
    """The agent's parts of a device; see ``running``."""

    def __init__(self, folder: Path, network: Network, device_id: str = "d1") -> None:
        self.network = network
        self.server = ProcessModelServer("127.0.0.1:0")
        self.journal = SqliteJournal(folder / "journal.db")
        self._trust = SqliteTrustStore(folder / "trust.db")
        clock = SystemClock()
        refresh = RealRefresh(TrustRefresher(network.fleet.root), network, clock, asyncio.to_thread)
        self.supervisor = Supervisor(
            SupervisorPorts(
                clock=clock,
                links=(network,),
                trust=TrustPorts(self._trust, refresh, read_view, asyncio.to_thread, clock),
                spool=MemorySpool(),
                server=self.server,
                resources=_Resources(),
            ),
            read_machine(device_id, "edge", {}),
            "boot",
            SupervisorLimits(
                pace=PaceLimits(window_s=0.5, cohort_window_s=0.5, probation_s=0.1),
                trust=TrustKeeperLimits(connect_jitter_s=0.0, burst=100),
            ),
        )
        self.updater = Updater(
            UpdaterPorts(
                journal=self.journal,
                pieces=FilePieceStore(folder / "pieces"),
                slots=FolderSlotStore(folder / "slots"),
                source=network,
                metadata=network,
                trial=ProcessTrial(),
                server=self.server,
                clock=clock,
            ),
            UpdateLimits(),
            self.supervisor.deployment_event,
        )

    def close(self) -> None:
        self.journal.close()
        self._trust.close()

    # --- what there is to see ---------------------------------------------------------------------

    def events(self, rollout_id: str) -> list[report_pb2.DeploymentEvent]:
        """Of one rollout, as they reached the fleet."""
        events = [it.deployment for it in self.network.reports if it.HasField("deployment")]
        return [event for event in events if event.rollout_id == rollout_id]

    def history(self, rollout_id: str) -> list[str]:
        """Phases and outcomes that reached the fleet, in order."""
        found = []
        for event in self.events(rollout_id):
            phase = report_pb2.Phase.Name(event.phase).removeprefix("PHASE_").lower()
            outcome = report_pb2.Outcome.Name(event.outcome).removeprefix("OUTCOME_").lower()
            found.append(outcome if event.outcome else phase)
        return found

    def windows(self, role: str) -> list[report_pb2.Window]:
        """Windows with this role in which something was counted."""
        windows = [it.window for it in self.network.reports if it.HasField("window")]
        return [it for it in windows if it.role == role and (it.requests or it.shadow_compared)]

    async def until(self, what: str, holds: Callable[[], object]) -> None:
        """Wait for reports until ``holds``. Raises AssertionError that says what was waited for."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while not holds():
                    self.network.changed.clear()
                    await self.network.changed.wait()
        except TimeoutError:
            raise AssertionError(f"never: {what}; last: {self.network.reports[-3:]}") from None


@asynccontextmanager
async def running(folder: Path, network: Network) -> AsyncIterator[OneDevice]:
    """A device that is on, and off at the end."""
    device = OneDevice(folder, network)
    try:
        async with device.server:
            task = asyncio.create_task(device.supervisor.run(device.updater))
            try:
                yield device
            finally:
                task.cancel()
                await asyncio.wait({task})
                if not task.cancelled() and (error := task.exception()) is not None:
                    raise error
    finally:
        device.close()
