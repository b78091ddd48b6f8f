"""What a pack costs a device, step by step, beside python-tuf's own client with its own files.

One state change a pack, as a rollout's stages make it: the retained message comes in, is unpacked and verified, what
came of it is committed to the trust store, and the device decides. Blocking, one after the other, as a device does it.
"""

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from tuf.api import exceptions as tuf_errors
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from agent.adapters.trust_store import SqliteTrustStore
from agent.trust import CurrentModel, DeviceFacts, TrustState, World, decide_in
from agent.trust.limits import TrustLimits
from agent.trust.pack import open_pack
from agent.trust.refresh import TrustRefresher
from agent.trust_view import read_view
from tests.support.signed_fleet import OfferedFiles, SignedFleet, directive_for

__all__ = ["STEPS", "Decisions", "Spread", "measure"]

STEPS: Final = ("unpack", "verify", "commit", "read", "decide")
_FACTS: Final = DeviceFacts("cam-7", "cam", "x86_64", {}, "0.1.0", "1.20.1", "cpu")
_WARM: Final = 3


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds."""

    median_ms: float
    p95_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        return cls(1000 * median(seconds), 1000 * quantiles(seconds, n=20)[-1])


@dataclass(frozen=True, slots=True)
class Decisions:
    """Of all packs.

    Attributes:
        packs: how many.
        pack_bytes: of the last one.
        steps: of each of ``STEPS``, by the clock.
        whole: all of them together.
        processor_ms: processor time of all of them, median.
        disk: one row committed by SQLite with ``synchronous=FULL`` in the same folder, and nothing else.
        peer: python-tuf's ``Updater`` with its own cache of files in the same folder, for the same changes.
    """

    packs: int
    pack_bytes: int
    steps: Mapping[str, Spread]
    whole: Spread
    processor_ms: float
    disk: Spread
    peer: Spread


def measure(packs: int, folder: Path) -> Decisions:
    """``packs`` stage changes (at least 2), with everything durable in ``folder``."""
    fleet = SignedFleet(folder / "fleet")
    release = fleet.publish(limits=((0, 100), (3_600, 10_000)), agent=">=0.1")
    device, peer = _Device(fleet, folder / "trust.db"), _Peer(fleet, folder / "peer")
    times: dict[str, list[float]] = {step: [] for step in STEPS}
    whole: list[float] = []
    processor: list[float] = []
    peers: list[float] = []
    pack = b""
    for number in range(packs + _WARM):
        fleet.now_s += 1
        pack = fleet.direct(directive_for(release, percent_bp=number + 1))
        began_s = time.process_time()
        took = device.take(pack)
        spent_s = time.process_time() - began_s
        peer_s = _timed(peer.refresh)
        if number >= _WARM:
            for step in STEPS:
                times[step].append(took[step])
            whole.append(sum(took.values()))
            processor.append(spent_s)
            peers.append(peer_s)
    device.store.close()
    return Decisions(
        packs, len(pack), {step: Spread.of(times[step]) for step in STEPS}, Spread.of(whole),
        1000 * median(processor), Spread.of(_commits(folder / "bare.db", packs)), Spread.of(peers),
    )  # fmt: skip


class _Device:
    """The parts of the agent through which a pack goes, with their own times."""

    def __init__(self, fleet: SignedFleet, path: Path) -> None:
        self._fleet = fleet
        self._refresher = TrustRefresher(fleet.root, device_class="cam")
        self._source = fleet.offered()
        self._state = TrustState()
        self.store = SqliteTrustStore(path)

    def take(self, pack: bytes) -> dict[str, float]:
        """Seconds of each step."""
        took: dict[str, float] = {}

        def step(name: str, work: Callable[[], Any]) -> Any:
            began_s = time.perf_counter()
            result = work()
            took[name] = time.perf_counter() - began_s
            return result

        now_s = self._fleet.now_s
        step("unpack", lambda: open_pack(pack, TrustLimits()))
        before = self._state
        self._state = step(
            "verify", lambda: self._refresher.refresh(before, self._source, pack, now_s)
        )
        took["verify"] = max(took["verify"] - took["unpack"], 0.0)  # it unpacks by itself
        step("commit", lambda: self.store.save(self._state))
        view = step("read", lambda: read_view(self._state))
        world = World(
            view.releases, _FACTS, self._state.floors_for("cam"), self._state.trusted_now_s(now_s),
            view.emergency, view.expires_s,
        )  # fmt: skip
        decisions = step(
            "decide", lambda: decide_in(world, view.directives, {"m": CurrentModel("m")})
        )
        assert decisions, "a device that decided nothing was not measured"
        return took


class _Peer:
    """python-tuf's client as its documentation shows it: a folder of files, and a directive looked up."""

    def __init__(self, fleet: SignedFleet, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._root = fleet.root
        self._fetcher = _Fetcher(fleet.offered())

    def refresh(self) -> None:
        updater = Updater(
            str(self._folder), "x://", fetcher=self._fetcher, config=UpdaterConfig(), bootstrap=self._root
        )  # fmt: skip
        assert updater.get_targetinfo("rollouts/r1") is not None


class _Fetcher(FetcherInterface):
    """The same offered files, without a network."""

    def __init__(self, offered: OfferedFiles) -> None:
        self._offered = offered

    def _fetch(self, url: str) -> Any:
        content = self._offered.get_metadata(url.removeprefix("x://"))
        if content is None:
            raise tuf_errors.DownloadHTTPError("there is none", 404)
        return iter([content])


def _commits(path: Path, count: int) -> list[float]:
    """What the disk takes for one small durable change."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t (x BLOB)")
    took = [
        _timed(lambda: db.execute("INSERT INTO t VALUES (zeroblob(1000))")) for _ in range(count)
    ]
    db.close()
    return took


def _timed(work: Callable[[], Any]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s
