"""A stage above a share of the fleet waits for somebody else than who started it, whatever way leads there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.trust import BundleRelease
from fleet.errors import RefusedError
from fleet.rollout.executor import Executor, ExecutorLimits
from fleet.rollout.outlook import waits_of
from fleet.rollout.record import Rollout
from fleet.rollout.report import describe
from fleet.rollout.states import Event, State
from tests.fleet.rollout.fleet_rows import DEVICES, Lab, asked
from tests.fleet.rollout.rollout_builders import rollout

ABOVE_BP = 2500


class Strict(Lab):
    """A fleet where more than 25 % need a second person."""

    def reopen(self) -> None:
        super().reopen()
        self.executor = Executor(
            self.store,
            self.signed.repository,
            self.publish,
            now_s=lambda: self.now_s,
            limits=ExecutorLimits(tick_s=0.01, second_above_bp=ABOVE_BP),
        )

    async def now(self, rollout_id: str = "r1") -> Rollout:
        return (await self.executor.observe(rollout_id)).snapshot.rollout

    def serve_well(self, release: BundleRelease, rollout_id: str = "r1") -> None:
        self.installed(release, rollout_id, DEVICES)
        self.now_s += 11
        self.window(release, rollout_id, DEVICES)

    async def approve(self, by: str, rollout_id: str = "r1") -> Rollout:
        return await self.executor.change(rollout_id, Event.APPROVE, by=by)


@pytest.fixture
def lab(tmp_path: Path) -> Strict:
    lab = Strict(tmp_path)
    lab.register()
    return lab


async def begun(lab: Strict, *stages_bp: int, by: str = "ada") -> BundleRelease:
    release = lab.release("1")
    await lab.executor.start(asked(release, *stages_bp), by=by)
    lab.serve_well(release)
    return release


async def test_it_waits_for_another_and_says_for_whom(lab: Strict) -> None:
    await begun(lab, 2500, 10_000)
    await lab.executor.tick()
    waiting = await lab.now()
    assert waiting.stage == 0
    assert (
        "stage 2 of 2 (100 %) needs approval by another than ada: `fleet rollout approve r1`"
        in (waiting.reason)
    )
    for by, named in (("ada", "ada"), ("", "who asks")):
        with pytest.raises(RefusedError, match=f"and {named} is no other") as caught:
            await lab.approve(by)
        assert "reaches more than 25 % of the fleet" in str(caught.value)
    await lab.executor.tick()
    assert (await lab.now()).stage == 0

    approved = await lab.approve("bob")
    assert approved.approved_by(1) == ("bob",)
    before = len(await lab.executor.trail("r1", limit=100))
    await lab.approve("bob")  # twice is as once
    assert len(await lab.executor.trail("r1", limit=100)) == before
    await lab.executor.tick()
    assert (await lab.now()).stage == 1
    audit = await lab.executor.audit("r1")
    assert audit.to_json()["equal"]


async def test_a_first_stage_above_it_says_nothing_to_devices_before(lab: Strict) -> None:
    release = lab.release("1")
    started = await lab.executor.start(asked(release, 10_000), by="ada")
    assert started.state is State.WAITING
    assert started.reason == (
        "created; 100 % needs approval by another than ada: `fleet rollout approve r1`"
    )
    assert lab.signed.repository.directives() == ()
    [wait] = waits_of(started, None)
    assert wait.words == "approve it (by another than ada): `fleet rollout approve r1`"
    with pytest.raises(RefusedError):
        await lab.approve("ada")
    assert (await lab.approve("bob")).state is State.RUNNING


async def test_nobody_goes_past_it_in_spite_of_the_gate(lab: Strict) -> None:
    """Whoever lets a stage begin is no second person for it: it takes one who approves and another who goes on."""
    await begun(lab, 2500, 10_000)

    async def advance(by: str) -> Rollout:
        return await lab.executor.advance("r1", reason="hurry", by=by)

    for by in ("ada", "bob", ""):
        with pytest.raises(RefusedError, match="needs approval by another than ada"):
            await advance(by)
    await lab.approve("bob")
    for by in ("bob", ""):
        with pytest.raises(RefusedError, match=f"not by {by or 'who asks'} either"):
            await advance(by)
    gone_on = await advance("ada")
    assert gone_on.stage == 1


async def test_who_went_on_in_spite_of_the_gate_is_no_second_person_later(lab: Strict) -> None:
    release = await begun(lab, 1000, 2500, 10_000)
    await lab.executor.advance("r1", reason="seen on the bench", by="bob")
    assert (await lab.now()).moved_by == ("ada", "bob")
    lab.serve_well(release)
    with pytest.raises(RefusedError, match="another than ada and bob"):
        await lab.approve("bob")
    await lab.approve("carl")
    await lab.executor.tick()
    assert (await lab.now()).stage == 2


async def test_below_it_nobody_is_asked_and_the_report_says_where(lab: Strict) -> None:
    await begun(lab, 1000, 2500, 10_000)
    await lab.executor.tick()
    assert (await lab.now()).stage == 1
    seen = await lab.executor.observe("r1")
    stages = describe(seen.snapshot, seen.action)["stage_list"]
    assert [one["second_person"] for one in stages] == [False, False, True]
    assert [one["approval"] for one in stages] == [False, False, True]


async def test_a_rollout_keeps_what_counted_when_it_started(lab: Strict) -> None:
    release = await begun(lab, 2500, 10_000)
    Lab.reopen(lab)  # a fleet manager that asks for nobody
    await lab.executor.tick()
    assert (await lab.now()).stage == 0
    await lab.executor.change("r1", Event.ABORT, by="ada")
    await lab.executor.start(asked(release, 2500, 10_000), by="ada")
    lab.serve_well(release, "r2")
    await lab.executor.tick()
    assert (await lab.now("r2")).stage == 1


async def test_to_end_it_or_go_back_nobody_else_is_asked(lab: Strict) -> None:
    await begun(lab, 2500, 10_000)
    for event, state in ((Event.PAUSE, State.PAUSED), (Event.ROLLBACK, State.ROLLED_BACK)):
        assert (await lab.executor.change("r1", event, by="ada")).state is state


@pytest.mark.parametrize(
    ("above_bp", "needs"),
    [(None, [False] * 3), (10_000, [False] * 3), (9999, [False, False, True]),
     (1000, [False, True, True]), (999, [True] * 3)],
)  # fmt: skip
def test_which_stages_need_a_second_person(above_bp: int | None, needs: list[bool]) -> None:
    details = {} if above_bp is None else {"second_above_bp": above_bp, "moved_by": ["ada"]}
    one = rollout(details=details)  # 10, 50 and 100 %
    assert [one.needs_second(stage) for stage in range(3)] == needs


def test_the_last_stage_counts_as_everybody() -> None:
    """With it the hold-back follows, and nobody is asked again."""
    one = rollout(details={"second_above_bp": 9500, "moved_by": ["ada"]})
    stages = one.spec.stages
    held = replace(
        one, spec=replace(one.spec, stages=(*stages[:2], replace(stages[2], percent_bp=9500)))
    )
    assert held.needs_second(2)


@pytest.mark.parametrize(
    ("approvers", "movers", "mover", "may"),
    [
        ([], ["ada"], "", False),
        (["ada"], ["ada"], "", False),
        ([""], ["ada"], "", False),
        (["bob"], ["ada"], "", True),
        (["bob"], ["ada"], "bob", False),
        (["bob", "carl"], ["ada"], "bob", True),
        (["bob"], ["ada", "bob"], "", False),
    ],
)
def test_who_counts_as_a_second_person(
    approvers: list[str], movers: list[str], mover: str, may: bool
) -> None:
    details: dict[str, Any] = {
        "second_above_bp": 0, "moved_by": movers, "approved": [1], "approved_by": {"1": approvers},
    }  # fmt: skip
    assert rollout(details=details).is_approved(1, mover=mover) is may
