"""Every state of a rollout, every event there, every verdict of the gate: what must hold in all of them.

The search is exhaustive and takes no database: a stable rollout, one on top of it (with and without
approval of its first stage) and one that may take its place; whatever an operator, the gate or another
start can do is done in every world that comes up, by the functions that the fleet manager uses.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import pytest

from agent.trust import BundleRelease, CurrentModel, DeviceFacts, Directive, Verb, slot_of
from agent.trust import decide as device_decides
from fleet.errors import ConflictError, RefusedError
from fleet.rollout.approval import ApprovalGuard
from fleet.rollout.changes import (
    OPERATOR_EVENTS,
    Asked,
    Change,
    asked_for,
    changed,
    created,
    decided,
    overridden,
    stratum_stopped,
    superseded,
)
from fleet.rollout.controller import Step, decide
from fleet.rollout.directives import desired_directives, may_share_devices
from fleet.rollout.gate import Finding, Verdict
from fleet.rollout.plan import Known, make_plan
from fleet.rollout.record import Rollout
from fleet.rollout.snapshot import Snapshot
from fleet.rollout.spec import Guards, RolloutSpec, Stage, Statistics
from fleet.rollout.states import ACTIVE, FINAL, Event, State
from tests.fleet.rollout.rollout_builders import snapshot

STRATA = ("cam/cpu", "cam/cuda", "cam/npu")
HALTED = {"paused", "aborted", "superseded"}
MOST_WORLDS = 3000
ASKED = Asked(9.0, reason="because")
World = tuple[Rollout, ...]
Move = Callable[[World], World]


@dataclass(frozen=True)
class Gate:
    """Finds always the same."""

    verdict: Verdict
    strata: tuple[str, ...] = ()
    name: str = "gate"

    def judge(self, _snapshot: Snapshot) -> Finding:
        evidence = {"stop_strata": list(self.strata), "strata": list(STRATA)}
        return Finding(self.name, self.verdict, "as it says", evidence if self.strata else {})


GATES = (
    Gate(Verdict.PASS),
    Gate(Verdict.HOLD),
    Gate(Verdict.FAIL),
    Gate(Verdict.HOLD, ("cam/cuda",)),
    Gate(Verdict.HOLD, STRATA),
)
BYTES = {f"bundles/cam/digits-{version}": 1 for version in (1, 2, 3)}
RELEASES = {
    path: BundleRelease(
        path=path, sha256=f"{int(path[-1]):064x}", length=1, model="digits", version=path[-1],
        device_class="cam",
    )
    for path in BYTES
}  # fmt: skip


def new(version: int, *approvals: bool) -> Rollout:
    """A rollout as it is created: of one stage, or two, that ask for approval or do not."""
    path = f"bundles/cam/digits-{version}"
    shares = (5000, 10_000)[-len(approvals) :]
    stages = tuple(
        Stage(share, 1.0, approval=asks) for share, asks in zip(shares, approvals, strict=True)
    )
    spec = RolloutSpec("digits", path, stages, guards=Guards(statistics=Statistics.OFF))
    return created(make_plan(spec, RELEASES[path], Known((), 0.0)), version, 0.0)


def plain(one: Rollout) -> Rollout:
    """Without what does not decide anything: times and words."""
    return replace(one, reason="", created_s=0.0, updated_s=0.0, stage_started_s=0.0)


def moves(world: World) -> Iterator[tuple[str, Move]]:
    """Everything that can be tried in this world."""
    for place in range(1, len(world)):
        name = world[place].id
        for event in set(OPERATOR_EVENTS) - {Event.ADVANCE, Event.STOP_STRATUM}:
            yield f"{name} {event}", _with(place, lambda one, e=event: asked_for(one, e, ASKED))
        for stratum in STRATA if place == 1 else ():  # of one rollout: they are many worlds
            yield (
                f"{name} stop {stratum}",
                _with(place, lambda one, s=stratum: stratum_stopped(one, s, STRATA, ASKED)),
            )
        for gate in GATES if place == 1 else GATES[:3]:
            yield f"{name} tick {gate.verdict} {gate.strata}", _with(place, _tick(gate))
            yield f"{name} over {gate.verdict}", _with(place, _override(gate))
    if len(world) == 2:
        yield "start", _start
        yield "supersede", _supersede


def _with(place: int, make: Callable[[Rollout], Change | None]) -> Move:
    def move(world: World) -> World:
        one = world[place]
        change = make(one)
        if change is None:
            return world
        after = plain(changed(one, change))
        return (*world[:place], after, *world[place + 1 :])

    return move


def _tick(gate: Gate) -> Callable[[Rollout], Change | None]:
    def make(one: Rollout) -> Change | None:
        now, guards = snapshot([], rollout=one), [gate, ApprovalGuard()]
        action = decide(now, guards)
        assert decide(now, guards) == action, "asked twice it differs"
        assert (action is None) == (one.state is not State.RUNNING)
        return None if action is None else decided(one, action, 9.0)

    return make


def _override(gate: Gate) -> Callable[[Rollout], Change | None]:
    return lambda one: overridden(
        one, decide(snapshot([], rollout=one), [gate, ApprovalGuard()]), ASKED
    )


def _start(world: World) -> World:
    newer = new(3, False)
    if any(one.state in ACTIVE and may_share_devices(one.spec, newer.spec) for one in world):
        raise ConflictError("under way")
    return (*world, plain(newer))


def _supersede(world: World) -> World:
    newer = new(3, False)
    ended = tuple(
        plain(changed(one, superseded(newer, ASKED))) if one.state in ACTIVE else one
        for one in world
    )
    return (*ended, plain(newer))


def key(world: World) -> tuple[tuple[object, ...], ...]:
    def told(one: Rollout) -> dict[str, object]:
        return {**one.details, "stopped": sorted(one.stopped)}

    return tuple((one.id, one.state, one.stage, repr(sorted(told(one).items()))) for one in world)


Found = Mapping[tuple[tuple[object, ...], ...], tuple[World, Mapping[str, World]]]


def explore(first: World) -> Found:
    """Every world that can be reached, and what each move leads to; a refused one is not listed."""
    seen: dict[tuple[tuple[object, ...], ...], tuple[World, dict[str, World]]] = {}
    waiting = [first]
    while waiting:
        world = waiting.pop()
        if key(world) in seen:
            continue
        led: dict[str, World] = {}
        seen[key(world)] = (world, led)
        assert len(seen) < MOST_WORLDS, "the search has no bound"
        for name, move in moves(world):
            try:
                led[name] = move(world)
            except (ConflictError, RefusedError):
                continue  # not possible here: that is an answer, too
            waiting.append(led[name])
    return seen


@pytest.fixture(scope="module", params=[False, True], ids=["", "first stage asks"])
def found(request: pytest.FixtureRequest) -> Found:
    stable = plain(replace(new(1, False), state=State.PROMOTED))
    return explore((stable, plain(new(2, request.param, True))))


def test_every_state_comes_up(found: Found) -> None:
    states = {one.state for world, _ in found.values() for one in world}
    assert states >= set(State) - {State.WAITING}


def test_no_two_are_under_way_on_one_device(found: Found) -> None:
    for world, _ in found.values():
        assert sum(one.state in ACTIVE for one in world) <= 1, key(world)


def test_what_the_devices_are_told(found: Found) -> None:
    for world, _ in found.values():
        said = {says.id: says for says in desired_directives(world, BYTES)}
        again = {says.id: says for says in desired_directives(tuple(reversed(world)), BYTES)}
        assert said == again
        for one in world:
            _check_directive(one, said.get(one.id), world)


def _check_directive(one: Rollout, says: Directive | None, world: World) -> None:
    if one.state is State.WAITING:
        assert says is None
    elif says is None:
        newer = [n for n in world if n.number > one.number and n.state is State.PROMOTED]
        assert any(not n.stopped for n in newer), f"{one.id} fell silent: {key(world)}"
    elif one.state is State.ROLLED_BACK:
        assert (says.kind, says.percent_bp, says.beside_bp) == ("rollback", 0, 0)
    else:
        assert (says.kind, says.halt) == ("deploy", str(one.state) in HALTED)
        assert says.stopped == one.stopped


DEVICES = [
    DeviceFacts(f"cam-{number}", "cam", "x86_64", execution_provider=provider)
    for number in range(3)
    for provider in ("cpu", "cuda")
]


def test_no_device_goes_to_what_was_taken_back(found: Found) -> None:
    """The device's own function, on the directives of every world."""
    for world, _ in found.values():
        said = desired_directives(world, BYTES)
        taken_back = {one.manifest_sha256 for one in world if one.state is State.ROLLED_BACK}
        for facts in DEVICES:
            for active in (f"{1:064x}", f"{2:064x}"):
                have = CurrentModel("digits", active, f"{1:064x}")
                (decision,) = device_decides(said, RELEASES, facts, {"digits": have}, {}, 2e9)
                if decision.verb is Verb.INSTALL:
                    assert decision.release is not None
                    assert decision.release.sha256 not in taken_back
                    assert slot_of(decision.release.sha256, facts.device_id) < 10_000


def test_every_step(found: Found) -> None:
    for world, led in found.values():
        before = {one.id: one for one in world}
        for name, after in led.items():
            for one in after:
                if one.id in before:
                    _check_step(name, before[one.id], one)


def _check_step(name: str, before: Rollout, after: Rollout) -> None:
    """One rollout before and after one move."""
    assert after.stage in (before.stage, before.stage + 1)
    assert set(before.stopped) <= set(after.stopped), f"{name}: a stratum began again"
    assert set(after.stopped) != set(STRATA) or after.state in FINAL, f"{name}: nobody is left"
    if before.state is State.ROLLED_BACK:
        assert after == before, f"{name}: what was rolled back has changed"
    if before.state in FINAL:
        assert after.state in FINAL, f"{name}: what had ended goes on"
        assert after.stage == before.stage
    went_on = after.stage > before.stage or (after.state, before.state) == (
        State.PROMOTED, State.RUNNING,
    )  # fmt: skip
    if went_on:
        assert before.state is State.RUNNING
        assert "tick pass" in name or "over pass" in name or "over hold" in name, name
        if "tick" in name and after.stage > before.stage:
            asks = before.spec.stages[after.stage].approval
            approved = after.stage in before.details.get("approved", ())
            assert approved or not asks, f"{name}: nobody approved"
    if "tick hold ()" in name:
        assert after == before, f"{name}: a hold changes nothing"
    if not name.startswith((before.id, "supersede")):
        assert after == before, f"{name}: changed {before.id}"


def test_a_repeated_failure_changes_nothing_more(found: Found) -> None:
    """Whatever is asked for again after it has happened is refused, or as if it had not been."""
    once = {"tick fail", "abort", "rollback", "stop", "approve"}
    for _, led in found.values():
        for name, after in led.items():
            if not any(word in name for word in once):
                continue
            again = found[key(after)][1].get(name)
            if again is not None and "approve" not in name:
                assert key(again) == key(after) or "tick fail" in name, name


def test_steps_and_events_agree() -> None:
    assert {step.event for step in Step} - {None} == {
        Event.ADVANCE, Event.PROMOTE, Event.ROLLBACK, Event.STOP_STRATUM,
    }  # fmt: skip
