"""A real database and a real signed repository, with rows in place of reports, and a clock of their own."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, select

from agent.trust import BundleRelease, Directive, in_cohort
from fleet.rollout.counting import count_windows
from fleet.rollout.executor import Executor, ExecutorLimits
from fleet.rollout.parsing import parse_spec
from fleet.rollout.spec import RolloutSpec
from fleet.store.engine import Store, open_store
from fleet.store.tables import bundles, deployments, device_models, devices, directives, windows
from tests.support.signed_fleet import START_S, SignedFleet

DEVICES = tuple(f"cam-{number}" for number in range(40))


_PLAIN: dict[str, Any] = {
    "model": "digits", "role": "", "output_counts": {}, "counters": {}, "low_confidence": 0,
    "confidence_count": 0, "feedback_count": 0, "feedback_correct": 0,
    "feedback_abs_error_sum": 0.0, "shadow_disagreed": 0, "shadow_compared": 0, "rss_bytes": 0,
    "cpu_percent": 0.0, "temperature_c": None,
}  # fmt: skip
"""What a window has that says nothing."""


@dataclass
class Lab:
    """A fleet of 40 devices. ``now_s`` is the time for everyone; ``seq`` numbers the reports."""

    home: Path
    now_s: float = START_S
    seq: int = 0
    packs: list[bytes] = field(default_factory=list)
    open_database: Callable[[Path], Store] = open_store
    signed: SignedFleet = field(init=False)

    def __post_init__(self) -> None:
        self.signed = SignedFleet(self.home)
        self.reopen()

    @property
    def database(self) -> Path:
        return self.home / "fleet.db"

    def reopen(self) -> None:
        """As after a restart: everything anew over the same files."""
        self.signed.reopen()
        self.store = self.open_database(self.database)
        self.executor = Executor(
            self.store,
            self.signed.repository,
            self.publish,
            now_s=lambda: self.now_s,
            limits=ExecutorLimits(tick_s=0.01, hold_entry_s=30.0),
        )

    async def publish(self) -> None:
        self.packs.append(self.signed.repository.pack())

    def release(self, version: str, **custom: Any) -> BundleRelease:
        """Publish a bundle: signed, and in the database."""
        self.signed.now_s = self.now_s
        release = self.signed.publish("digits", version, **custom)
        with self.store.begin() as connection:
            connection.execute(
                bundles.insert().values(
                    path=release.path,
                    model=release.model,
                    version=release.version,
                    device_class=release.device_class,
                    manifest_sha256=release.sha256,
                    manifest_bytes=release.length,
                    size_bytes=1000,
                    release=release.release,
                    published_s=self.now_s,
                )
            )
        return release

    def register(self, ids: Iterable[str] = DEVICES, **facts: Any) -> None:
        with self.store.begin() as connection:
            for device_id in ids:
                row = {"device_class": "cam", "hardware": "x86_64", "labels": {}, **facts}
                row |= {"first_seen_s": self.now_s, "last_seen_s": self.now_s}
                connection.execute(devices.insert().values(id=device_id, **row))

    def heard(self, ids: Iterable[str] = DEVICES) -> None:
        with self.store.begin() as connection:
            self._heard(connection, list(ids))

    def installed(self, release: BundleRelease, rollout_id: str, ids: Iterable[str]) -> None:
        """These devices committed, and serve it."""
        with self.store.begin() as connection:
            for device_id in ids:
                self._step(connection, device_id, release, rollout_id, "idle", "committed", "")

    def failed(
        self, release: BundleRelease, rollout_id: str, ids: Iterable[str], outcome: str, code: str
    ) -> None:
        with self.store.begin() as connection:
            for device_id in ids:
                self._step(connection, device_id, release, rollout_id, "try", outcome, code)

    def window(
        self,
        release: BundleRelease,
        rollout_id: str,
        ids: Iterable[str],
        **counts: int,
    ) -> None:
        """Each of these devices sends a window about this bundle now."""
        row = {"requests": 100, "failures": 0, "over_objective": 0, "input_violations": 0}
        row |= {"output_violations": 0, "non_finite": 0, **counts}
        with self.store.begin() as connection:
            for device_id in ids:
                self.seq += 1
                told = {
                    "device_id": device_id,
                    "boot_id": "b",
                    "seq": self.seq,
                    "version": release.version,
                    "manifest_sha256": release.sha256,
                    "rollout_id": rollout_id,
                    "start_ms": int(self.now_s * 1000) - 1000,
                    "end_ms": int(self.now_s * 1000),
                }
                connection.execute(
                    windows.insert().values(**told, **row, model="digits", received_s=self.now_s)
                )
                count_windows(connection, [_PLAIN | row | told], self.now_s)
                self._heard(connection, [device_id])

    def cohort(self, release: BundleRelease, percent_bp: int) -> list[str]:
        return [d for d in DEVICES if in_cohort(release.sha256, d, percent_bp)]

    def stored_directives(self) -> list[Directive]:
        with self.store.read() as connection:
            query = select(directives.c.body).order_by(directives.c.number.desc())
            return [Directive.from_json(row.body) for row in connection.execute(query)]

    def _heard(self, connection: Connection, ids: list[str]) -> None:
        known = devices.c.id.in_(ids)
        connection.execute(devices.update().where(known).values(last_seen_s=self.now_s))

    def _step(
        self,
        connection: Connection,
        device_id: str,
        release: BundleRelease,
        rollout_id: str,
        phase: str,
        outcome: str,
        code: str,
    ) -> None:
        self.seq += 1
        key = (deployments.c.device_id == device_id) & (deployments.c.rollout_id == rollout_id)
        connection.execute(delete(deployments).where(key))
        connection.execute(
            deployments.insert().values(
                device_id=device_id,
                rollout_id=rollout_id,
                deployment_id=f"{device_id}-{self.seq}",
                manifest_sha256=release.sha256,
                phase=phase,
                outcome=outcome,
                reason_code=code,
                reason=code,
                at_ms=int(self.now_s * 1000),
                updated_s=self.now_s,
                committed_s=self.now_s if outcome == "committed" else None,
                boot_id="b",
                seq=self.seq,
            )
        )
        if outcome == "committed":
            mine = device_models.c.device_id == device_id
            connection.execute(delete(device_models).where(mine))
            connection.execute(
                device_models.insert().values(
                    device_id=device_id,
                    model="digits",
                    version=release.version,
                    manifest_sha256=release.sha256,
                    rollout_id=rollout_id,
                    updated_s=self.now_s,
                )
            )
        self._heard(connection, [device_id])


def asked(
    release: BundleRelease, *shares_bp: int, bake_s: float = 10.0, **changes: Any
) -> RolloutSpec:
    """A spec with these stages, and guards for small numbers."""
    guards = {"min_installs": 3, "min_requests": 50, "silence_s": 60.0}
    raw = {
        "bundle": release.path,
        "stages": [{"percent_bp": share, "bake_s": bake_s} for share in shares_bp],
        "guards": guards,
        **changes,
    }
    return parse_spec(raw)
