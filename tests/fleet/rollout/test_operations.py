"""What operators do, over a real database and a real signed repository."""

from pathlib import Path
from typing import Any

import pytest

from agent.trust import BundleRelease, slot_of
from fleet.errors import ConflictError, NotFoundError, RefusedError, RequestError
from fleet.rollout import records
from fleet.rollout.audit import Entry
from fleet.rollout.record import Rollout
from fleet.rollout.states import Event, State
from tests.fleet.rollout.fleet_rows import DEVICES, Lab, asked


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    lab = Lab(tmp_path)
    lab.register()
    return lab


def two_stages(release: BundleRelease, **changes: Any) -> Any:
    return asked(release, 5000, 10_000, **changes)


def with_approval(release: BundleRelease, first: bool = False) -> Any:
    stages = [
        {"percent_bp": 5000, "bake_s": 10.0, "approval": first},
        {"percent_bp": 10_000, "bake_s": 10.0, "approval": True},
    ]
    return asked(release, stages=stages)


async def now(lab: Lab, rollout_id: str) -> Rollout:
    return (await lab.executor.observe(rollout_id)).snapshot.rollout


async def newest(lab: Lab, rollout_id: str) -> Entry:
    return (await lab.executor.trail(rollout_id, limit=1))[0]


def serve_well(lab: Lab, release: BundleRelease, rollout_id: str) -> None:
    """Everyone has it, serves without a fault, and the stage has baked."""
    lab.installed(release, rollout_id, DEVICES)
    lab.now_s += 11
    lab.window(release, rollout_id, DEVICES)


async def test_a_stage_that_needs_approval_begins_once_it_has_it(lab: Lab) -> None:
    release = lab.release("1")
    await lab.executor.start(with_approval(release))
    serve_well(lab, release, "r1")
    await lab.executor.tick()
    assert (await now(lab, "r1")).stage == 0
    assert "needs approval: `fleet rollout approve r1`" in (await now(lab, "r1")).reason

    await lab.executor.change("r1", Event.APPROVE, reason="looks well", by="ada")
    entry = await newest(lab, "r1")
    assert entry.reason == "stage 2 of 2 (100 %) approved by an operator: looks well"
    assert entry.evidence == {"by": "ada"}
    before = len(await lab.executor.trail("r1", limit=100))
    await lab.executor.change("r1", Event.APPROVE)  # twice is as once
    assert len(await lab.executor.trail("r1", limit=100)) == before

    await lab.executor.tick()
    assert (await now(lab, "r1")).stage == 1
    with pytest.raises(ConflictError, match="no approval is needed to go on"):
        await lab.executor.change("r1", Event.APPROVE)


async def test_a_first_stage_that_needs_approval_says_nothing_before(lab: Lab) -> None:
    release = lab.release("1")
    started = await lab.executor.start(with_approval(release, first=True))
    assert started.state is State.WAITING
    assert started.reason == "created; 50 % needs approval: `fleet rollout approve r1`"
    assert lab.signed.repository.directives() == ()
    await lab.executor.tick()
    assert (await now(lab, "r1")).state is State.WAITING
    with pytest.raises(ConflictError, match="waiting for approval"):
        await lab.executor.advance("r1", reason="hurry")
    lab.now_s += 50
    approved = await lab.executor.change("r1", Event.APPROVE)
    assert (approved.state, approved.stage_started_s) == (State.RUNNING, lab.now_s)
    assert lab.signed.repository.directives()[0].percent_bp == 5000


async def test_an_operator_goes_on_where_the_gate_holds(lab: Lab) -> None:
    release = lab.release("1")
    await lab.executor.start(two_stages(release))
    for reason in ("", "  "):
        with pytest.raises(RequestError, match="needs a reason"):
            await lab.executor.advance("r1", reason=reason)
    await lab.executor.advance("r1", reason="seen on the bench", by="ada")
    rollout = await now(lab, "r1")
    assert (rollout.stage, rollout.state) == (1, State.RUNNING)
    assert lab.signed.repository.directives()[0].percent_bp == 10_000
    entry = await newest(lab, "r1")
    assert (entry.actor, entry.action, entry.verdict) == ("operator", "advance", "hold")
    assert entry.reason.startswith(
        "advanced to stage 2 of 2 (100 %) by an operator: seen on the bench (the gate was holding: "
    )
    assert entry.evidence["override"] is True
    assert entry.evidence["findings"]

    await lab.executor.advance("r1", reason="enough")
    assert (await now(lab, "r1")).state is State.PROMOTED
    with pytest.raises(ConflictError, match="promoted"):
        await lab.executor.advance("r1", reason="more")


async def test_nobody_goes_on_where_the_gate_fails(lab: Lab) -> None:
    release = lab.release("1")
    await lab.executor.start(two_stages(release))
    canaries = lab.cohort(release, 5000)
    lab.installed(release, "r1", canaries)
    lab.window(release, "r1", canaries, failures=50)
    with pytest.raises(RefusedError, match="it fails: rolled back in stage 1"):
        await lab.executor.advance("r1", reason="I know better")
    assert (await now(lab, "r1")).stage == 0


async def test_to_do_what_the_gate_was_about_to_do_is_no_override(lab: Lab) -> None:
    release = lab.release("1")
    await lab.executor.start(two_stages(release))
    serve_well(lab, release, "r1")
    await lab.executor.advance("r1", reason="ready")
    entry = await newest(lab, "r1")
    assert entry.evidence["override"] is False
    assert entry.reason == "advanced to stage 2 of 2 (100 %) by an operator: ready"


async def test_a_conflict_names_the_rollout_and_the_devices(lab: Lab) -> None:
    first, second = lab.release("1"), lab.release("2")
    await lab.executor.start(two_stages(first, exclude=["id=cam-0"]))
    with pytest.raises(ConflictError) as caught:
        await lab.executor.start(two_stages(second, selector={"hardware": "x86_64"}))
    said = str(caught.value)
    assert "rollout r1 of bundles/cam/digits-1 is running on some of the same devices" in said
    assert "those with class=cam, hardware=x86_64 (39 known, cam-1, cam-10, cam-11, ...)" in said
    assert "--supersede" in said
    alone = await lab.executor.start(two_stages(second, selector={"id": "cam-0"}), force=True)
    assert alone.state is State.RUNNING


async def test_a_rollout_that_supersedes_ends_the_older_in_the_same_step(lab: Lab) -> None:
    first, second = lab.release("1"), lab.release("2")
    await lab.executor.start(two_stages(first))
    lab.installed(first, "r1", lab.cohort(first, 5000))
    packs = len(lab.packs)
    started = await lab.executor.start(two_stages(second), supersede=True, by="ada")
    assert len(lab.packs) == packs + 1
    older = await now(lab, "r1")
    assert (older.state, older.details["superseded_by"]) == (State.SUPERSEDED, started.id)
    assert older.reason == ("halted: superseded with r2 of bundles/cam/digits-2 by an operator")
    said = [(d.id, d.halt, d.percent_bp) for d in lab.signed.repository.directives()]
    assert said == [("r2", False, 5000), ("r1", True, 5000)]
    assert (await lab.executor.trail("r2", limit=1))[0].evidence["supersedes"] == ["r1"]
    await lab.executor.tick()
    assert (await now(lab, "r1")).state is State.SUPERSEDED
    with pytest.raises(ConflictError, match="r2 came after it"):
        await lab.executor.change("r1", Event.ROLLBACK)
    serve_well(lab, second, "r2")
    for _ in range(2):
        await lab.executor.tick()
        serve_well(lab, second, "r2")
    assert (await now(lab, "r2")).state is State.PROMOTED
    assert [d.id for d in lab.signed.repository.directives()] == ["r2"]


async def test_without_a_conflict_nothing_is_superseded(lab: Lab) -> None:
    release = lab.release("1")
    await lab.executor.start(two_stages(release), supersede=True)
    assert (await lab.executor.trail("r1", limit=1))[0].evidence["supersedes"] == []


async def test_a_superseding_rollout_that_is_refused_ends_nothing(lab: Lab) -> None:
    first, second = lab.release("1"), lab.release("2")
    await lab.executor.start(two_stages(first))
    with pytest.raises(RefusedError, match="would not work"):
        await lab.executor.start(
            asked(second, 1, 10_000, guards={"min_devices": 40}), supersede=True
        )
    assert (await now(lab, "r1")).state is State.RUNNING


@pytest.fixture
def mixed(tmp_path: Path) -> Lab:
    """Half of the devices run on CUDA."""
    lab = Lab(tmp_path)
    lab.register(DEVICES[:20], execution_provider="cuda")
    lab.register(DEVICES[20:])
    return lab


async def test_one_stratum_is_stopped_and_the_rest_goes_on(mixed: Lab) -> None:
    stable = mixed.release("1")
    await mixed.executor.start(asked(stable, 10_000))
    serve_well(mixed, stable, "r1")
    await mixed.executor.tick()
    release = mixed.release("2")
    await mixed.executor.start(two_stages(release))
    mixed.installed(release, "r2", DEVICES[20:])
    mixed.failed(release, "r2", DEVICES[:20], "reverted", "error_rate")
    stopped = await mixed.executor.stop_stratum("r2", "cam/cuda", reason="no driver")
    assert (stopped.state, stopped.stopped) == (State.RUNNING, ("cam/cuda",))
    assert mixed.signed.repository.directives()[0].stopped == ("cam/cuda",)
    entries = len(await mixed.executor.trail("r2", limit=100))
    await mixed.executor.stop_stratum("r2", "cam/cuda")  # twice is as once
    assert len(await mixed.executor.trail("r2", limit=100)) == entries

    snapshot = (await mixed.executor.observe("r2")).snapshot
    assert {device.device_id for device in snapshot.cohort} <= set(DEVICES[20:])
    for _ in range(2):
        mixed.now_s += 11
        mixed.window(release, "r2", DEVICES[20:])
        await mixed.executor.tick()
    assert (await now(mixed, "r2")).state is State.PROMOTED
    said = [(d.id, d.percent_bp, d.stopped) for d in mixed.signed.repository.directives()]
    assert said == [("r2", 10_000, ("cam/cuda",)), ("r1", 10_000, ())]


async def test_what_cannot_be_stopped(mixed: Lab) -> None:
    release = mixed.release("1")
    await mixed.executor.start(two_stages(release))
    with pytest.raises(RequestError, match="write CLASS/PROVIDER"):
        await mixed.executor.stop_stratum("r1", "cuda")
    with pytest.raises(
        NotFoundError, match=r"no device .* is in cam/npu: there is cam/cpu, cam/cu"
    ):
        await mixed.executor.stop_stratum("r1", "cam/npu")
    await mixed.executor.stop_stratum("r1", "cam/cuda")
    with pytest.raises(ConflictError, match="last stratum of rollout r1"):
        await mixed.executor.stop_stratum("r1", "cam/cpu")
    await mixed.executor.change("r1", Event.ROLLBACK)
    assert (await now(mixed, "r1")).state is State.ROLLED_BACK
    with pytest.raises(ConflictError, match="stop_stratum is not possible"):
        await mixed.executor.stop_stratum("r1", "cam/cpu")


async def test_new_devices_join_the_stage_they_hash_into(lab: Lab) -> None:
    release = lab.release("1")
    await lab.executor.start(two_stages(release))
    fresh = [f"new-{number}" for number in range(20)]
    lab.register(fresh)
    cohort = {d.device_id for d in (await lab.executor.observe("r1")).snapshot.cohort}
    assert {d for d in fresh if slot_of(release.sha256, d) < 5000} == cohort & set(fresh)
    assert cohort & set(fresh)


async def test_a_death_between_ending_one_and_starting_the_other_changes_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = lab.release("1"), lab.release("2")
    await lab.executor.start(two_stages(first))

    def dies(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records, "add_rollout", dies)
        with pytest.raises(KeyboardInterrupt):
            await lab.executor.start(two_stages(second), supersede=True)
    lab.reopen()
    assert (await now(lab, "r1")).state is State.RUNNING
    await lab.executor.start(two_stages(second), supersede=True)
    assert (await now(lab, "r1")).state is State.SUPERSEDED
