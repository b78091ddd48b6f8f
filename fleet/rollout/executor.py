"""The only part of a rollout with I/O: it reads a snapshot, lets the controller decide, and acts.

Rules kept here: a decision is stored with its audit entry and its directives in one transaction,
and only then signed and published; signing and publishing are repeated until the signed directives
are those of the database, so the process may end at any line; one task at a time changes rollouts.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection, select
from sqlalchemy.exc import SQLAlchemyError

from agent.errors import AgentError
from agent.trust import BundleRelease, Directive, stratum_of
from fleet.connect import outbox
from fleet.errors import FleetError, ServerError
from fleet.rollout import audit, operations, planning, preserved, records, replay
from fleet.rollout.candidates import ReadManifest, read_candidates
from fleet.rollout.changes import Asked, decided, overridden
from fleet.rollout.controller import Action, Step, decide
from fleet.rollout.fitness import is_meant
from fleet.rollout.observe import newest_report_s, read_snapshot, steps_of
from fleet.rollout.outlook import waits_of
from fleet.rollout.planned import Plan
from fleet.rollout.record import Rollout
from fleet.rollout.replay import Audit
from fleet.rollout.rings import prepare_ring, store_ring
from fleet.rollout.snapshot import Snapshot
from fleet.rollout.spec import RolloutSpec
from fleet.rollout.states import Event, State
from fleet.store.engine import Store
from fleet.store.tables import directives

__all__ = ["Also", "Executor", "ExecutorLimits", "Signer"]

log = logging.getLogger(__name__)


Also = Callable[[Connection, Rollout], None]
"""What else belongs into the transaction of a change, given the rollout after it; what it raises takes all back."""


def _nothing_else(_connection: Connection, _rollout: Rollout) -> None:
    pass


class Signer(Protocol):
    """What the executor needs of the repository."""

    def set_directives(self, directives: Sequence[Directive], now_s: float) -> bool:
        """Sign exactly these directives; True when they differ from what was signed before."""
        ...

    def releases(self, now_s: float) -> Mapping[str, BundleRelease]:
        """What the release role has signed, by bundle path, without the speed limits that are lifted by then."""
        ...


@dataclass(frozen=True, slots=True)
class ExecutorLimits:
    """``tick_s``: time between looks. ``hold_entry_s``: a hold whose reason only counts on is
    written to the audit trail at most this often; a new kind of reason at once. ``second_above_bp``: a
    stage of a rollout started from now on that reaches more needs a second person; None: none does."""

    tick_s: float = 2.0
    hold_entry_s: float = 30.0
    shown_entries: int = 20
    second_above_bp: int | None = None


class Observation(NamedTuple):
    """A rollout as it is now."""

    snapshot: Snapshot
    action: Action | None
    entries: list[audit.Entry]


class Executor:
    """Runs every rollout of a fleet."""

    def __init__(
        self,
        store: Store,
        repository: Signer,
        publish: Callable[[], Awaitable[None]],
        *,
        manifest: ReadManifest = lambda _sha256: None,
        now_s: Callable[[], float] = time.time,
        limits: ExecutorLimits | None = None,
    ) -> None:
        self._store = store
        self._repository = repository
        self._publish = publish
        self._manifest = manifest
        self._now_s = now_s
        self._limits = limits or ExecutorLimits()
        self._lock = asyncio.Lock()
        self._woken = asyncio.Event()
        self._publish_due = True  # what was signed before the process ended may not have gone out
        self._started_s = now_s()
        self._listening_since_s: dict[str, float] = {}

    # --- the loop ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look and act every ``tick_s`` until cancelled. An error is logged and tried again."""
        while True:
            try:
                await self.tick()
            except (
                Exception
            ):  # whatever one look raises, the next must come: rollbacks depend on it
                log.exception("a look at the rollouts failed; trying again")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.tick_s):
                    await self._woken.wait()
            self._woken.clear()

    def wake(self) -> None:
        """Look at once instead of at the next tick. Call it from the event loop."""
        self._woken.set()

    async def tick(self) -> None:
        """One look at every running rollout, then sign and publish what has changed."""
        async with self._lock:
            for rollout in await asyncio.to_thread(self._running):
                try:
                    await asyncio.to_thread(self._look, rollout)
                except (FleetError, AgentError, SQLAlchemyError) as error:
                    # One rollout that cannot be judged holds; the others go on.
                    log.error("rollout %s could not be judged: %s", rollout.id, error)
            await self._reconcile()

    async def reconcile(self) -> bool:
        """Sign the directives of the database, and publish when that changed anything."""
        async with self._lock:
            return await self._reconcile()

    async def _reconcile(self) -> bool:
        changed = await asyncio.to_thread(self._sign)
        self._publish_due = self._publish_due or changed
        if self._publish_due:
            await self._publish()
            self._publish_due = False
        return changed

    def _sign(self) -> bool:
        with self._store.read() as connection:
            rows = connection.execute(select(directives).order_by(directives.c.number)).all()
        wanted = [Directive.from_json(row.body) for row in rows]
        return self._repository.set_directives(wanted, self._now_s())

    # --- deciding ---------------------------------------------------------------------------------

    def _running(self) -> list[Rollout]:
        with self._store.read() as connection:
            running = records.running_rollouts(connection)
        gone = self._listening_since_s.keys() - {rollout.id for rollout in running}
        for rollout_id in gone:
            del self._listening_since_s[rollout_id]
        return running

    def _look(self, rollout: Rollout) -> None:
        self._begin(rollout)
        snapshot = self._snapshot(rollout)
        self._listening_since_s[rollout.id] = snapshot.listening_since_s
        action = decide(snapshot)
        if action is None:
            return
        change = decided(rollout, action, self._now_s())
        with self._store.begin() as connection:
            if change is None:
                self._hold(connection, rollout, action)
                preserved.keep(connection, snapshot, changed=False)
                return
            records.apply_change(connection, rollout, change)
            preserved.keep(connection, snapshot, changed=True)
        ids = {"rollout": rollout.id, "model": rollout.model, "bundle": rollout.bundle}
        log.info("rollout %s: %s", rollout.id, action.reason, extra=ids)

    def _begin(self, rollout: Rollout) -> None:
        """Freeze who is compared with whom, once for each time a stage begins."""
        now_s = self._now_s()
        release = self._repository.releases(now_s).get(rollout.bundle)
        with self._store.read() as connection:
            prepared = prepare_ring(connection, rollout, release, now_s)
        if prepared is not None:
            with self._store.begin() as connection:
                store_ring(connection, prepared)

    def _hold(self, connection: Connection, rollout: Rollout, action: Action) -> None:
        """Tell why a rollout holds; in the audit trail only what it does not say already."""
        at_s = self._now_s()
        told = {"at_s": at_s, "reason": action.reason, "verdict": str(action.verdict)}
        told |= {"evidence": action.evidence, "blockers": action.blockers}
        told["waits"] = [wait.words for wait in waits_of(rollout, action)]
        outbox.add_hold(connection, rollout, told)
        if action.reason != rollout.reason:
            records.set_reason(connection, rollout, action.reason, at_s)
        last = audit.last_entry(connection, rollout.id)
        if last is not None and last.action == Step.HOLD and last.stage == rollout.stage:
            same_kind = last.evidence.get("blockers") == list(action.blockers)
            fresh = at_s - last.at_s < self._limits.hold_entry_s
            if last.reason == action.reason or (same_kind and fresh):
                return
        state = str(rollout.state)
        audit.append(
            connection,
            audit.Entry(
                rollout_id=rollout.id,
                at_s=at_s,
                actor=audit.CONTROLLER,
                action=str(action.step),
                from_state=state,
                to_state=state,
                stage=rollout.stage,
                verdict=str(action.verdict),
                reason=action.reason,
                evidence={**action.evidence, "blockers": list(action.blockers)},
            ),
        )

    def _snapshot(self, rollout: Rollout) -> Snapshot:
        now_s = self._now_s()
        release = self._repository.releases(now_s).get(rollout.bundle)
        with self._store.read() as connection:
            since_s = self._listening(rollout, newest_report_s(connection), now_s)
            return read_snapshot(connection, rollout, release, now_s, since_s)

    def _listening(self, rollout: Rollout, newest_s: float, now_s: float) -> float:
        """Since when silence means anything.

        While nobody at all is heard, the fault is not a bundle's; and when the devices come back, each gets the
        whole silence time to do so.
        """
        if now_s - newest_s > rollout.spec.guards.silence_s / 2:
            return now_s
        return self._listening_since_s.get(rollout.id, self._started_s)

    # --- what operators ask -----------------------------------------------------------------------

    async def plan(self, spec: RolloutSpec) -> Plan:
        """What ``spec`` would do. Raises NotFoundError, RequestError."""

        def work() -> Plan:
            with self._store.read() as connection:
                return self._plan(connection, spec).plan

        return await asyncio.to_thread(work)

    def _plan(self, connection: Connection, spec: RolloutSpec) -> planning.Planned:
        now_s = self._now_s()
        releases = self._repository.releases(now_s)
        return planning.plan(connection, spec, releases, self._manifest, now_s)

    async def start(
        self,
        spec: RolloutSpec,
        *,
        force: bool = False,
        supersede: bool = False,
        by: str = "",
        also: Also = _nothing_else,
    ) -> Rollout:
        """Start a rollout; its directive is signed and published when this returns.

        Raises:
            NotFoundError: the bundle is not published.
            RefusedError: the plan has a problem and ``force`` is not set.
            ConflictError: another rollout of the model is under way on the same devices, and
                ``supersede`` is not set.
        """

        def work() -> Rollout:
            with self._store.begin() as connection:
                made = self._plan(connection, spec)
                asked = self._asked(by=by)
                rollout = operations.start(
                    connection, made, asked, force=force, supersede=supersede
                )
                also(connection, rollout)
                return rollout

        return await self._then_reconcile(work)

    def _asked(self, reason: str = "", by: str = "") -> Asked:
        return Asked(self._now_s(), by, reason, self._limits.second_above_bp)

    async def change(
        self,
        rollout_id: str,
        event: Event,
        *,
        reason: str = "",
        by: str = "",
        also: Also = _nothing_else,
    ) -> Rollout:
        """Pause, resume, approve, abort or roll back.

        Raises:
            NotFoundError: there is no such rollout. ConflictError: not possible in its state.
        """

        def work() -> Rollout:
            with self._store.begin() as connection:
                asked = self._asked(reason, by)
                rollout = operations.change(connection, rollout_id, event, asked)
                also(connection, rollout)
                return rollout

        return await self._then_reconcile(work)

    async def advance(
        self, rollout_id: str, *, reason: str, by: str = "", also: Also = _nothing_else
    ) -> Rollout:
        """Go on although the gate holds.

        Raises:
            NotFoundError: there is no such rollout. ConflictError: it is not running.
            RequestError: no reason is given. RefusedError: the gate fails it, or a second person is missing.
        """

        def work() -> Rollout:
            with self._store.read() as connection:
                rollout = records.get_rollout(connection, rollout_id)
            if rollout.state is State.RUNNING:
                self._begin(rollout)
            snapshot = self._snapshot(rollout)
            change = overridden(rollout, decide(snapshot), self._asked(reason, by))
            with self._store.begin() as connection:
                changed = records.apply_change(connection, rollout, change)
                preserved.keep(connection, snapshot, changed=False)  # its look counts all the same
                also(connection, changed)
                return changed

        return await self._then_reconcile(work)

    async def stop_stratum(
        self,
        rollout_id: str,
        stratum: str,
        *,
        reason: str = "",
        by: str = "",
        also: Also = _nothing_else,
    ) -> Rollout:
        """Let one stratum (``CLASS/PROVIDER``) leave the bundle, and the others go on.

        Raises:
            NotFoundError: no such rollout or stratum. RequestError: it is no stratum.
            ConflictError: not possible in its state, or no other stratum is left.
        """

        def work() -> Rollout:
            with self._store.begin() as connection:
                rollout = records.get_rollout(connection, rollout_id)
                strata = _strata(connection, rollout)
                asked = self._asked(reason, by)
                stopped = operations.stop_stratum(connection, rollout, stratum, strata, asked)
                also(connection, stopped)
                return stopped

        return await self._then_reconcile(work)

    async def rollouts(self) -> list[Rollout]:
        """Every rollout, newest first."""

        def work() -> list[Rollout]:
            with self._store.read() as connection:
                return records.all_rollouts(connection)

        return await asyncio.to_thread(work)

    async def observe(self, rollout_id: str) -> Observation:
        """A rollout as it is now, what the controller would decide, and its newest audit entries.

        Raises:
            NotFoundError: there is no such rollout.
        """

        def work() -> Observation:
            with self._store.read() as connection:
                rollout = records.get_rollout(connection, rollout_id)
                entries = audit.trail(connection, rollout.id, self._limits.shown_entries)
            snapshot = self._snapshot(rollout)
            return Observation(snapshot, decide(snapshot), entries)

        return await asyncio.to_thread(work)

    async def trail(self, rollout_id: str, *, limit: int, before: int = 0) -> list[audit.Entry]:
        """The audit trail of a rollout, newest first. Raises NotFoundError."""

        def work() -> list[audit.Entry]:
            with self._store.read() as connection:
                rollout = records.get_rollout(connection, rollout_id)
                return audit.trail(connection, rollout.id, limit, before)

        return await asyncio.to_thread(work)

    async def audit(self, rollout_id: str) -> Audit:
        """Every beginning, look and decision made again from what was kept. Raises NotFoundError."""

        def work() -> Audit:
            with self._store.read() as connection:
                rollout = records.get_rollout(connection, rollout_id)
                return replay.audit(connection, rollout)

        return await asyncio.to_thread(work)

    async def deployments(self, rollout_id: str, *, after: str, limit: int) -> list[dict[str, Any]]:
        """The newest step of each device in a rollout, by device id. Raises NotFoundError."""

        def work() -> list[dict[str, Any]]:
            with self._store.read() as connection:
                rollout = records.get_rollout(connection, rollout_id)
                return steps_of(connection, rollout.id, after, limit)

        return await asyncio.to_thread(work)

    async def _then_reconcile(self, work: Callable[[], Rollout]) -> Rollout:
        async with self._lock:
            rollout = await asyncio.to_thread(work)
            try:
                await self._reconcile()
            except (FleetError, AgentError, OSError) as error:
                raise ServerError(
                    f"rollout {rollout.id} is recorded as {rollout.state}, but its directive is not "
                    f"out yet: {error}. It is tried again every {self._limits.tick_s:g} s"
                ) from error
            return rollout


def _strata(connection: Connection, rollout: Rollout) -> list[str]:
    """The strata of the devices that a rollout is for."""
    known = read_candidates(connection, rollout.model, rollout.manifest_sha256)
    meant = (device.facts for device in known if is_meant(rollout.spec, device.facts))
    return sorted({stratum_of(facts) for facts in meant})
