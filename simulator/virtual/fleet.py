"""A real fleet manager without its network: store, plan, controller, gate and executor over a clock of ours.

Rules kept here: what is decided is decided by the fleet's own code, from rows written by the function
that ingest uses; only two things are missing, the wire and the signatures, which virtual devices
would not look at; the database lives in a folder that is gone afterwards.
"""

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from sqlalchemy import event

from agent.trust import BundleRelease, Directive, bundle_path
from fleet.monitor.record import record
from fleet.monitor.reports import ParsedReport
from fleet.rollout import Rollout, RolloutSpec, State, spec_from_toml
from fleet.rollout.audit import Entry
from fleet.rollout.executor import Executor
from fleet.store.engine import Store, open_store
from fleet.store.tables import bundles, device_models, devices
from simulator.errors import WorldError

__all__ = ["FleetOnPaper"]

MODEL: Final = "virtual"
MANIFEST_BYTES: Final = 2000
EVERYBODY_AT_ONCE: Final = '[[stage]]\npercent = 100\nbake = "0s"\n'
TRAIL: Final = 500
BATCH: Final = 5000  # reports of one transaction


class _Unsigned:
    """``fleet.rollout.executor.Signer`` that only remembers."""

    def __init__(self) -> None:
        self.directives: tuple[Directive, ...] = ()
        self.released: dict[str, BundleRelease] = {}

    def set_directives(self, directives: Sequence[Directive], now_s: float) -> bool:
        changed = tuple(directives) != self.directives
        self.directives = tuple(directives)
        return changed

    def releases(self, now_s: float) -> Mapping[str, BundleRelease]:
        return self.released


class FleetOnPaper:
    """The fleet manager of one world. ``now_s`` is its clock."""

    def __init__(self, folder: Path, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._signer = _Unsigned()
        self._store = _open(folder / "fleet.db")
        self._executor = Executor(self._store, self._signer, self._publish, now_s=now_s)

    async def _publish(self) -> None:
        """Directives are read where they are."""

    @property
    def directives(self) -> tuple[Directive, ...]:
        """What devices are told now."""
        return self._signer.directives

    def release(self, device_class: str, version: str, seed: int) -> BundleRelease:
        """Publish a bundle; the seed makes its digest, so that it decides who is in which stage."""
        release = BundleRelease(
            path=bundle_path(device_class, MODEL, version),
            sha256=sha256(f"{seed}/{version}".encode()).hexdigest(),
            length=MANIFEST_BYTES,
            model=MODEL,
            version=version,
            device_class=device_class,
            release=len(self._signer.released) + 1,
            signed_at_s=int(self._now_s()),
        )
        self._signer.released[release.path] = release
        row = {
            "path": release.path,
            "model": release.model,
            "version": version,
            "device_class": device_class,
            "manifest_sha256": release.sha256,
            "manifest_bytes": MANIFEST_BYTES,
            "size_bytes": MANIFEST_BYTES,
            "release": release.release,
            "published_s": self._now_s(),
        }
        with self._store.begin() as connection:
            connection.execute(bundles.insert().values(**row))
        return release

    def enrol(self, inventories: Sequence[ParsedReport]) -> None:
        """Make these devices known, all at once: as if each had sent its first inventory."""
        now_s, known = self._now_s(), devices.columns.keys()
        rows = [
            {
                **{name: value for name, value in one.row.items() if name in known},
                "id": one.device_id,
                "first_seen_s": now_s,
                "last_seen_s": now_s,
            }
            for one in inventories
        ]
        active = [
            {**model, "device_id": one.device_id, "updated_s": now_s}
            for one in inventories
            for model in one.active
        ]
        with self._store.begin() as connection:
            connection.execute(devices.insert(), rows)
            connection.execute(device_models.insert(), active)

    def take(self, reports: Iterable[ParsedReport]) -> int:
        """Store reports as ingest does; how many there were."""
        pending = list(reports)
        for at in range(0, len(pending), BATCH):
            with self._store.begin() as connection:
                record(connection, pending[at : at + BATCH], self._now_s())
        return len(pending)

    async def start(self, release: BundleRelease, rollout_toml: str) -> Rollout:
        """Start a rollout as an operator does, warnings or not.

        Raises:
            RequestError: the text is no rollout. RefusedError, ConflictError: it cannot be started.
        """
        return await self._executor.start(_spec(release, rollout_toml), by="simulator")

    async def promote(self, release: BundleRelease, installed: Callable[[str], None]) -> str:
        """Bring every device to a bundle, as if long ago; the id of that rollout.

        Args:
            release: what they run.
            installed: called with the rollout's id; it has to report that everybody has it.

        Raises:
            WorldError: the fleet's own gate does not promote it.
        """
        rollout = await self._executor.start(_spec(release, EVERYBODY_AT_ONCE), force=True)
        installed(rollout.id)
        await self._executor.tick()
        ended = await self.rollout(rollout.id)
        if ended.state is not State.PROMOTED:
            raise WorldError(
                f"the bundle that virtual devices begin with is {ended.state}: {ended.reason}. The "
                "guards of a rollout's defaults are too strict for [population]: lower its rates."
            )
        return rollout.id

    async def tick(self) -> None:
        """Let the executor look at every rollout once."""
        await self._executor.tick()

    async def rollout(self, rollout_id: str) -> Rollout:
        """A rollout as it is now."""
        found = {one.id: one for one in await self._executor.rollouts()}
        return found[rollout_id]

    async def trail(self, rollout_id: str) -> list[Entry]:
        """What was decided about it, oldest first."""
        return (await self._executor.trail(rollout_id, limit=TRAIL))[::-1]

    def close(self) -> None:
        """Close the database."""
        self._store.close()


def _spec(release: BundleRelease, rollout_toml: str) -> RolloutSpec:
    """The rollout of this bundle that the text describes."""
    return spec_from_toml(f'bundle = "{release.path}"\n{rollout_toml}')


def _open(path: Path) -> Store:
    """A database that nobody will need after a crash: it waits for no disk."""
    store = open_store(path)
    event.listen(store.engine, "connect", _hurry)
    store.engine.dispose()  # connections from before would still wait
    return store


def _hurry(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA synchronous=OFF")
