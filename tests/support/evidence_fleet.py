"""A fleet of rows, a rollout of it and a clock: for tests and benchmarks of what comparisons are made from.

Devices have rates of their own, their windows go the way of reports (``record``), and a tick does what the executor
does, without signing anything.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, insert, select

from agent.trust import slot_of
from fleet.monitor.record import record
from fleet.monitor.reports import Kind, ParsedReport
from fleet.rollout import records
from fleet.rollout.audit import CONTROLLER, Entry, append
from fleet.rollout.controller import Action, Step, decide
from fleet.rollout.observe import read_snapshot
from fleet.rollout.parsing import parse_spec
from fleet.rollout.preserved import keep
from fleet.rollout.record import Rollout
from fleet.rollout.rings import begin_ring
from fleet.rollout.snapshot import Snapshot
from fleet.rollout.states import State
from fleet.store.engine import Store, open_store
from fleet.store.tables import bundles, deployments, device_models, devices

__all__ = ["NEW", "OLD", "START_S", "EvidenceFleet", "store_like", "window_row"]

OLD: Final = "aa" * 32
NEW: Final = "bb" * 32
START_S: Final = 1_800_000_000.0
BUNDLES: Final = {"bundles/cam/digits-1": OLD, "bundles/cam/digits-2": NEW}
_ZEROS: Final = (
    "over_objective", "input_violations", "output_violations", "non_finite", "feedback_count",
    "feedback_correct", "feedback_unknown", "shadow_compared", "shadow_disagreed",
    "shadow_dropped", "confidence_count", "low_confidence", "disk_free_bytes",
)  # fmt: skip


def window_row(
    device_id: str, end_s: float, length_s: float = 60.0, **fields: Any
) -> dict[str, Any]:
    """The row of a window; ``fields`` replace its own."""
    return {
        "device_id": device_id, "boot_id": "b", "seq": int(end_s * 10), "model": "digits",
        "version": "1", "manifest_sha256": OLD, "rollout_id": "", "start_ms": int((end_s - length_s) * 1000),
        "end_ms": int(end_s * 1000), "requests": 30, "failures": 0, **dict.fromkeys(_ZEROS, 0),
        "feedback_abs_error_sum": 0.0, "error_kinds": {}, "latency": b"", "rss_bytes": 1000,
        "cpu_percent": 10.0, "temperature_c": None, "merged": 1, "notices": [], "role": "",
        "output_counts": {}, "counters": {}, **fields,
    }  # fmt: skip


@dataclass
class EvidenceFleet:
    """``devices`` cameras that all fail ``mean`` of their requests, each a little differently.

    ``factor``: what the new bundle does to the rate of errors, by stratum; 1 changes nothing.
    """

    store: Store
    size: int = 200
    mean: float = 0.02
    seed: int = 1
    providers: Sequence[str] = ("cpu",)
    factor: dict[str, float] = field(default_factory=dict)
    per_minute: int = 30
    now_s: float = START_S

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.ids = [f"cam-{number:06d}" for number in range(self.size)]
        self.rates = self.rng.beta(self.mean * 50, (1 - self.mean) * 50, self.size)
        with self.store.begin() as connection:
            self._register(connection)

    def _register(self, connection: Connection) -> None:
        plain = {"labels": {}, "hardware": "x86_64", "device_class": "cam"}
        seen = {"first_seen_s": self.now_s, "last_seen_s": self.now_s}
        rows = [
            {"id": one, **plain, **seen, "execution_provider": self.provider(number)}
            for number, one in enumerate(self.ids)
        ]
        connection.execute(insert(devices), rows)
        serves = {"model": "digits", "version": "1", "manifest_sha256": OLD, "updated_s": 0.0}
        connection.execute(
            insert(device_models), [{"device_id": one, **serves} for one in self.ids]
        )
        for path, digest in BUNDLES.items():
            about = {"model": "digits", "version": path[-1], "device_class": "cam", "release": 1}
            size = {"manifest_bytes": 10, "size_bytes": 10, "published_s": 0.0}
            connection.execute(
                insert(bundles).values(path=path, manifest_sha256=digest, **about, **size)
            )

    def provider(self, number: int) -> str:
        return self.providers[number % len(self.providers)]

    def history(self, hours: int = 2, windows_per_hour: int = 4) -> None:
        """What the devices did before: long windows, so that it costs little."""
        length_s = 3600.0 / windows_per_hour
        for _ in range(hours * windows_per_hour):
            self.now_s += length_s
            self.report(self.ids, length_s)

    def start(self, *shares_bp: int, bake_s: float = 600.0, **changes: Any) -> Rollout:
        """A rollout of the new bundle."""
        raw: dict[str, Any] = {
            "bundle": "bundles/cam/digits-2",
            "model": "digits",
            "stages": [{"percent_bp": share, "bake_s": bake_s} for share in shares_bp],
            "hold_back": "0",
            "guards": {"silence_s": 300.0, **changes.pop("guards", {})},
            **changes,
        }
        spec = parse_spec(raw)
        rollout = Rollout(
            id="r1", number=1, model="digits", bundle=spec.bundle, manifest_sha256=NEW,
            previous_bundle="bundles/cam/digits-1", spec=spec, state=State.RUNNING, stage=0,
            stage_started_s=self.now_s, reason="", created_s=self.now_s, updated_s=self.now_s,
        )  # fmt: skip
        entry = Entry("r1", self.now_s, "operator", "start", "", "running", 0, "", "started")
        with self.store.begin() as connection:
            records.add_rollout(connection, rollout, entry)
        return rollout

    def rollout(self) -> Rollout:
        with self.store.read() as connection:
            return records.get_rollout(connection, "r1")

    def cohort(self) -> list[str]:
        share = self.rollout().current_stage.percent_bp
        return [one for one in self.ids if slot_of(NEW, one) < share]

    def install(self) -> None:
        """The cohort commits, and serves the new bundle."""
        with self.store.begin() as connection:
            known = set(connection.scalars(select(deployments.c.device_id)))
            fresh = [one for one in self.cohort() if one not in known]
            step = {
                "rollout_id": "r1", "deployment_id": "x", "manifest_sha256": NEW, "phase": "idle",
                "outcome": "committed", "reason_code": "", "reason": "", "at_ms": 0,
                "updated_s": self.now_s, "committed_s": self.now_s,
            }  # fmt: skip
            if fresh:
                connection.execute(
                    insert(deployments), [{"device_id": one, **step} for one in fresh]
                )

    def report(self, ids: Sequence[str], length_s: float = 60.0, **fields: Any) -> None:
        """A window of each of these devices that ends now, with failures by chance."""
        with self.store.begin() as connection:
            self.report_in(connection, self.rows(ids, length_s, **fields))

    def rows(
        self, ids: Sequence[str], length_s: float = 60.0, **fields: Any
    ) -> list[dict[str, Any]]:
        """The windows themselves."""
        with self.store.read() as connection:
            steps = connection.scalars(select(deployments.c.device_id))
            has_new = set(steps)
        place = {one: number for number, one in enumerate(self.ids)}
        requests = round(self.per_minute * length_s / 60)
        made = []
        for one in ids:
            number = place[one]
            rate = float(self.rates[number])
            about: dict[str, Any] = {"requests": requests}
            if one in has_new:
                rate *= self.factor.get(self.provider(number), 1.0)
                about |= {"manifest_sha256": NEW, "rollout_id": "r1"}
            about["failures"] = int(self.rng.binomial(requests, min(rate, 1.0)))
            made.append(window_row(one, self.now_s, length_s, **about | fields))
        return made

    def report_in(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
        """These windows arrive now."""
        parsed = [
            ParsedReport(
                Kind.WINDOW, row["device_id"], row["boot_id"], row["seq"], row["end_ms"], row
            )
            for row in rows
        ]
        record(connection, parsed, self.now_s)

    def snapshot(self) -> Snapshot:
        with self.store.read() as connection:
            rollout = records.get_rollout(connection, "r1")
            return read_snapshot(connection, rollout, None, self.now_s, START_S)

    def tick(self) -> Action | None:
        """As the executor: begin the stage, look, decide, and keep what it was made from."""
        rollout = self.rollout()
        if rollout.state is not State.RUNNING:
            return None
        with self.store.begin() as connection:
            begin_ring(connection, rollout, None, self.now_s)
        snapshot = self.snapshot()
        action = decide(snapshot)
        assert action is not None
        with self.store.begin() as connection:
            self.act(connection, snapshot, action)
        return action

    def act(self, connection: Connection, snapshot: Snapshot, action: Action) -> None:
        """The transaction of a decision."""
        rollout, event = snapshot.rollout, action.step.event
        if event is not None:
            details = {"stopped": [*rollout.stopped, *action.strata]} if action.strata else {}
            change = records.Change(
                event, CONTROLLER, action.reason, self.now_s, str(action.verdict),
                action.evidence, details,
            )  # fmt: skip
            records.apply_change(connection, rollout, change)
        else:
            assert action.step is Step.HOLD
            state = str(rollout.state)
            entry = Entry(
                "r1", self.now_s, CONTROLLER, "hold", state, state, rollout.stage,
                str(action.verdict), action.reason, action.evidence,
            )  # fmt: skip
            append(connection, entry)
        keep(connection, snapshot, changed=event is not None)

    def minutes(self, count: int) -> Action | None:
        """Minutes go by: every device reports in each, and the executor ticks."""
        action = None
        for _ in range(count):
            self.now_s += 60
            self.report(self.ids)
            action = self.tick()
            if action is None:
                break
        return action


def store_like(template: Path, home: Path) -> Store:
    """A store of its own with the newest schema: ``template`` is made once, since migrating costs most."""
    if not template.exists():
        open_store(template).close()
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(template, home / "fleet.db")
    return open_store(home / "fleet.db")
