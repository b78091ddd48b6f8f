"""A rollout in a virtual world, from its start to its end: hours of a fleet in seconds.

Rules kept here: devices obey the directives that the executor has set, as of its last look; reports
reach it after each step of the clock and before its next look; the same scenario and seed end the
same way. Maintenance windows, ramps and what a device does beside its active bundle are not simulated.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from agent.trust import Directive, slot_of
from fleet.rollout import Rollout, State
from fleet.rollout.controller import Step
from fleet.rollout.states import ACTIVE
from simulator.errors import ScenarioError
from simulator.scenario import Scenario
from simulator.virtual.counting import Setting
from simulator.virtual.fleet import FleetOnPaper
from simulator.virtual.rows import Reporter, Serving
from simulator.virtual.windows import Bools, Events, Floats, Ints, Outcome
from simulator.virtual.world import VirtualWorld

__all__ = ["Decision", "VirtualOutcome", "check_virtual", "run_virtual"]

EPOCH_S: Final = 1_800_000_000.0  # of the fleet's clock when the world begins
HISTORY_S: Final = 3600.0  # before that, the past is reported
WARM_UP_S: Final = 120.0  # everybody has been heard when the rollout starts
AFTERWARDS_S: Final = 120.0  # devices are watched a little longer than the rollout
PATIENCE: Final = 3.0  # a rollout that takes so many times its bakes is left alone
SLOTS: Final = 10_000
Told = Callable[[float, Rollout], None]
"""Is given the seconds since the rollout's start, and the rollout as it is now."""
# Seconds of a stage up to which the clock goes on by so many: often while devices install, and then
# so that it stands at each look of the gate (fleet/rollout/gate/schedule.py: half minutes).
STEPS_S: Final = ((150.0, 15.0), (570.0, 30.0), (np.inf, 60.0))


@dataclass(frozen=True, slots=True)
class Decision:
    """One entry of the rollout's audit trail, ``after_s`` its start."""

    after_s: float
    action: str
    stage: int
    reason: str


@dataclass(frozen=True, slots=True)
class VirtualOutcome:
    """How it ended. ``exposed``: devices that served the candidate at some time; ``serving``: at the end.

    ``after_s`` is from the rollout's start to its end, or to where it was left alone.
    """

    devices: int
    seed: int
    state: str
    stage: int
    after_s: float
    reason: str
    exposed: int
    serving: int
    refused: int
    reverted: int
    reports: int
    requests: int
    failures: int
    virtual_s: float
    cpu_s: float
    decisions: tuple[Decision, ...]

    def rows(self) -> list[tuple[str, str]]:
        """The table for people."""
        share = self.failures / self.requests if self.requests else 0.0
        return [
            (
                "rollout",
                f"{self.state} in stage {self.stage + 1} after {self.after_s / 60:.1f} min",
            ),
            ("because", self.reason),
            ("devices", f"{self.devices}, {self.exposed} served the candidate, {self.serving} do"),
            ("installs", f"{self.refused} refused, {self.reverted} reverted by themselves"),
            ("requests", f"{self.requests:,}, {share:.2%} failed"),
            ("reports", f"{self.reports:,}"),
            (
                "time",
                f"{self.virtual_s / 60:.0f} min of the fleet in {self.cpu_s:.1f} s of CPU, "
                f"seed {self.seed}",
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        """The same for machines."""
        return asdict(self)


class _Run:
    """A world and its fleet manager, step by step."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        devices, run = scenario.devices, scenario.run
        setting = Setting(
            scenario.population,
            scenario.candidate,
            scenario.incident,
            run.window_s,
            min(run.cohort_window_s, run.window_s),
        )
        self._clock_s = EPOCH_S - HISTORY_S
        self.world = VirtualWorld(setting, devices.count, devices.seed)
        self.fleet = FleetOnPaper(folder, lambda: self._clock_s)
        own = self.world.characters
        self._kinds = tuple(own.kind_names[kind] for kind in own.kind)
        self._reporter = Reporter(devices.ids(), self._kinds, EPOCH_S)
        self._slots: Ints = np.zeros(devices.count, np.int64)
        self._begun: Bools = np.zeros(devices.count, bool)
        self._settles_s: Floats = np.full(devices.count, -np.inf)
        self.exposed: Bools = np.zeros(devices.count, bool)
        self.ended: Ints = np.zeros(len(Outcome), np.int64)
        self.reports = self.requests = self.failures = 0
        self._seen: tuple[Directive, ...] = ()
        self.old: Serving
        self.new: Serving

    async def begin(self) -> Rollout:
        """Everybody runs the stable bundle and has a past; then the rollout starts."""
        devices, fleet = self.scenario.devices, self.fleet
        everyone = np.arange(devices.count)
        stable = fleet.release(devices.device_class, "1.0.0", devices.seed)
        fleet.enrol(self._reporter.inventories(everyone, Serving(stable, ""), -HISTORY_S))

        def installed(rollout_id: str) -> None:
            self.old = Serving(stable, rollout_id)
            there = Events(
                everyone, np.full(devices.count, -HISTORY_S), np.zeros(devices.count, np.int64)
            )
            self._take(self._reporter.ended(there, self.old))
            self._take(self._reporter.history(self.world.history(), self.old))

        await fleet.promote(stable, installed)
        candidate = fleet.release(devices.device_class, "2.0.0", devices.seed)
        self.new = Serving(candidate, "")
        self._slots = np.array([slot_of(candidate.sha256, one) for one in devices.ids()])
        self.step(WARM_UP_S)
        rollout = await fleet.start(candidate, self.scenario.run.rollout)
        self.new = Serving(candidate, rollout.id)
        self.obey()
        return rollout

    def step(self, seconds: float) -> None:
        """Let time pass and take what is reported in it."""
        to_s = self.world.now_s + seconds
        windows, events = self.world.advance(to_s)
        self._clock_s = EPOCH_S + to_s
        self.requests += int(windows.requests.sum())
        self.failures += int(windows.failures.sum())
        self._take(self._reporter.windows(windows, self.old, self.new))
        self._take(self._reporter.ended(events, self.new))
        self.ended += np.bincount(events.outcome, minlength=len(Outcome))
        for outcome, serving in ((Outcome.COMMITTED, self.new), (Outcome.REVERTED, self.old)):
            moved = events.device[events.outcome == outcome]
            self._take(self._reporter.inventories(moved, serving, to_s))
        back = events.device[events.outcome == Outcome.RESTORED]
        self._take(self._reporter.inventories(back, self.old, to_s))
        self.exposed[events.device[events.outcome == Outcome.COMMITTED]] = True
        self._settles_s[events.device] = to_s + 10 * self.scenario.run.window_s

    def obey(self) -> None:
        """Do on every device what the directive about the candidate says."""
        about = next((d for d in self.fleet.directives if d.id == self.new.rollout_id), None)
        if about is None:
            return
        everyone = np.arange(self.world.count)
        if about.kind == "rollback":
            self.world.revert(everyone)
        elif not about.halt:
            stopped = np.isin(self._kinds, about.stopped)
            self.world.revert(everyone[stopped])
            chosen = (self._slots < about.percent_bp) & ~stopped
            begins = chosen & ~self._begun
            self._begun |= begins
            begun = self._reporter.begun(np.flatnonzero(begins), self.new, self.world.now_s)
            self._take(begun)
            self.world.deploy(everyone[chosen])
        self.world.set_pace(self._fast(about))

    def _fast(self, about: Directive) -> Bools:
        """Who reports often: the stage, as many beside it, and whoever has just changed (agent/health/pace.py)."""
        compared = about.kind == "deploy" and 0 < about.percent_bp < SLOTS
        near: Bools = (self._slots < 2 * about.percent_bp) & compared
        settling: Bools = self._settles_s > self.world.now_s
        return near | settling

    def _take(self, reports: Any) -> None:
        self.reports += self.fleet.take(reports)


def _nobody(after_s: float, rollout: Rollout) -> None:
    """Nobody is told how it goes."""


async def run_virtual(scenario: Scenario, told: Told = _nobody) -> VirtualOutcome:
    """Run a scenario with ``time = "virtual"`` until its rollout has ended.

    Args:
        scenario: what to run.
        told: called after every step of the clock.

    Raises:
        ScenarioError: the scenario is not virtual, or a kind is not of the devices' class.
        RequestError, RefusedError: its rollout cannot be started.
        WorldError: the devices cannot begin as they should.
    """
    check_virtual(scenario)
    began_s = time.process_time()
    with tempfile.TemporaryDirectory(prefix="fleet-sim-") as folder:
        run = _Run(scenario, Path(folder))
        try:
            return await _to_the_end(run, began_s, told)
        finally:
            run.fleet.close()


def check_virtual(scenario: Scenario) -> None:
    """Raises ScenarioError when this cannot be a virtual world."""
    if not scenario.is_virtual:
        raise ScenarioError('the scenario has time = "real": write time = "virtual" into [run].')
    device_class = scenario.devices.device_class
    for kind in scenario.population.kinds:
        if kind.partition("/")[0] != device_class or not kind.partition("/")[2]:
            raise ScenarioError(
                f"[population] kinds has {kind!r}: the devices are of class {device_class!r}, so write "
                f"'{device_class}/PROVIDER', as in '{device_class}/cpu'."
            )
    only = scenario.candidate.only_kind
    if only and only not in scenario.population.kinds:
        known = ", ".join(scenario.population.kinds)
        raise ScenarioError(f"[candidate] only_kind = {only!r} is not one of the kinds {known}.")


async def _to_the_end(run: _Run, began_s: float, told: Told) -> VirtualOutcome:
    rollout = await run.begin()
    started_s = run.world.now_s
    bakes_s = sum(stage.bake_s for stage in rollout.spec.stages)
    most_s = run.scenario.run.duration_s or PATIENCE * bakes_s + 3600.0
    while rollout.state in ACTIVE and run.world.now_s - started_s < most_s:
        run.step(_step_s(EPOCH_S + run.world.now_s - rollout.stage_started_s))
        await run.fleet.tick()
        run.obey()
        rollout = await run.fleet.rollout(rollout.id)
        told(run.world.now_s - started_s, rollout)
    after_s = run.world.now_s - started_s
    run.step(AFTERWARDS_S)
    decisions = await _decisions(run, rollout)
    return VirtualOutcome(
        devices=run.world.count,
        seed=run.scenario.devices.seed,
        state=str(rollout.state) if rollout.state is not State.RUNNING else "holding",
        stage=rollout.stage,
        after_s=after_s,
        reason=rollout.reason,
        exposed=int(run.exposed.sum()),
        serving=int(run.world.candidate.sum()),
        refused=int(run.ended[Outcome.REFUSED]),
        reverted=int(run.ended[Outcome.REVERTED]),
        reports=run.reports,
        requests=run.requests,
        failures=run.failures,
        virtual_s=run.world.now_s,
        cpu_s=round(time.process_time() - began_s, 2),
        decisions=decisions,
    )


def _step_s(stage_s: float) -> float:
    return next(step_s for until_s, step_s in STEPS_S if stage_s < until_s)


async def _decisions(run: _Run, rollout: Rollout) -> tuple[Decision, ...]:
    """The audit trail without holds that went on: of several in a row, the last says what it waited for."""
    entries = await run.fleet.trail(rollout.id)
    told = [
        entry
        for entry, after in zip(entries, [*entries[1:], None], strict=True)
        if entry.action != Step.HOLD or after is None or after.action != Step.HOLD
    ]
    return tuple(
        Decision(entry.at_s - rollout.created_s, entry.action, entry.stage, entry.reason)
        for entry in told
    )
