"""The executor over a real database and a real signed repository."""

from pathlib import Path

import pytest

from agent.trust import BundleRelease
from fleet.errors import ConflictError, NotFoundError, RefusedError, RequestError, ServerError
from fleet.rollout import records
from fleet.rollout.audit import Entry
from fleet.rollout.states import Event, State
from tests.fleet.rollout.fleet_rows import DEVICES, Lab, asked


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    lab = Lab(tmp_path)
    lab.register()
    return lab


async def promote(lab: Lab, release: BundleRelease) -> str:
    """Bring a bundle to everyone."""
    started = await lab.executor.start(asked(release, 10_000))
    lab.installed(release, started.id, DEVICES)
    lab.now_s += 11
    lab.window(release, started.id, DEVICES)
    await lab.executor.tick()
    assert await state(lab, started.id) == (State.PROMOTED, 0)
    return started.id


async def state(lab: Lab, rollout_id: str) -> tuple[State, int]:
    snapshot, _, _ = await lab.executor.observe(rollout_id)
    return snapshot.rollout.state, snapshot.rollout.stage


async def trail(lab: Lab, rollout_id: str) -> list[Entry]:
    return list(reversed(await lab.executor.trail(rollout_id, limit=1000)))


async def test_a_good_bundle_goes_through_every_stage(lab: Lab) -> None:
    release = lab.release("1")
    started = await lab.executor.start(asked(release, 5000, 10_000))
    assert started.id == "r1"
    (directive,) = lab.signed.repository.directives()
    assert (directive.percent_bp, directive.kind, directive.length) == (
        5000,
        "deploy",
        release.length,
    )
    assert lab.packs == [lab.signed.repository.pack()]

    canaries = lab.cohort(release, 5000)
    lab.now_s += 11
    lab.installed(release, "r1", canaries)
    lab.now_s += 1
    lab.window(release, "r1", canaries)
    await lab.executor.tick()
    assert await state(lab, "r1") == (State.RUNNING, 1)
    assert lab.signed.repository.directives()[0].percent_bp == 10_000

    lab.installed(release, "r1", set(DEVICES) - set(canaries))
    lab.now_s += 11
    lab.window(release, "r1", DEVICES)
    await lab.executor.tick()
    assert await state(lab, "r1") == (State.PROMOTED, 1)
    entries = await trail(lab, "r1")
    assert [entry.action for entry in entries] == ["start", "advance", "promote"]
    assert entries[1].reason.startswith("going on to stage 2 of 2 (100 %): ")
    assert entries[1].evidence["cohort"]["targeted"] == len(canaries)
    assert entries[2].actor == "controller"


async def test_holding_is_told_once_a_reason(lab: Lab) -> None:
    release = lab.release("1")
    await lab.executor.start(asked(release, 5000, 10_000))
    for _ in range(3):
        await lab.executor.tick()
    entries = await trail(lab, "r1")
    assert [entry.action for entry in entries] == ["start", "hold"]
    total = len(lab.cohort(release, 5000))
    assert (
        f"0 of {total} canary devices have committed and reported; 80 % are needed"
        in entries[1].reason
    )
    # A count that goes up is told at most every hold_entry_s; the rollout itself says it at once.
    lab.installed(release, "r1", lab.cohort(release, 5000)[:2])
    lab.window(release, "r1", lab.cohort(release, 5000)[:2], requests=10)
    await lab.executor.tick()
    assert len(await trail(lab, "r1")) == 2
    snapshot, _, _ = await lab.executor.observe("r1")
    assert f"2 of {total} canary devices" in snapshot.rollout.reason
    lab.now_s += 31
    lab.heard()
    await lab.executor.tick()
    assert len(await trail(lab, "r1")) == 3


async def test_a_bad_bundle_is_rolled_back_and_the_stable_one_stays(lab: Lab) -> None:
    stable = lab.release("1")
    await promote(lab, stable)
    bad = lab.release("2")
    started = await lab.executor.start(asked(bad, 5000, 10_000))
    assert started.previous_bundle == stable.path
    assert [d.id for d in lab.signed.repository.directives()] == ["r2", "r1"]
    canaries = lab.cohort(bad, 5000)
    lab.failed(bad, "r2", canaries, "refused", "trial_golden_failed")
    await lab.executor.tick()
    assert await state(lab, "r2") == (State.ROLLED_BACK, 0)
    newest, older = lab.signed.repository.directives()
    assert (newest.kind, newest.sha256) == ("rollback", bad.sha256)
    assert (older.kind, older.sha256) == ("deploy", stable.sha256)
    assert lab.packs[-1] == lab.signed.repository.pack()
    last = (await trail(lab, "r2"))[-1]
    assert (last.action, last.verdict) == ("rollback", "fail")
    assert "refused (trial_golden_failed)" in last.reason


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"failures": 20}, "the error rate is 20 %"),
        ({"over_objective": 50}, "the latency objective is 50 %"),
        ({"output_violations": 10, "non_finite": 3}, "outputs outside the contract is 10 %"),
        ({"output_violations": 3, "non_finite": 10}, "outputs outside the contract is 10 %"),
    ],
)
async def test_what_devices_serve_decides(lab: Lab, counts: dict[str, int], says: str) -> None:
    release = lab.release("1")
    await lab.executor.start(asked(release, 5000, 10_000))
    canaries = lab.cohort(release, 5000)
    lab.installed(release, "r1", canaries)
    lab.window(release, "r1", canaries, **counts)
    await lab.executor.tick()
    assert await state(lab, "r1") == (State.ROLLED_BACK, 0)
    assert says in (await trail(lab, "r1"))[-1].reason


async def test_late_reports_of_an_earlier_try_do_not_count(lab: Lab) -> None:
    stable = lab.release("1")
    await promote(lab, stable)
    bad = lab.release("2")
    await lab.executor.start(asked(bad, 5000, 10_000))
    canaries = lab.cohort(bad, 5000)
    lab.failed(bad, "r2", canaries, "reverted", "error_rate")
    await lab.executor.tick()
    lab.now_s += 1000
    lab.heard()
    await lab.executor.start(asked(bad, 5000, 10_000))
    late_s = lab.now_s
    lab.now_s -= 900  # measured long ago ...
    lab.window(bad, "r2", canaries, failures=100)
    lab.now_s = late_s
    with lab.store.begin() as connection:  # ... received now
        connection.exec_driver_sql(
            "UPDATE windows SET received_s = ? WHERE failures = 100", (late_s + 1,)
        )
    lab.now_s += 1
    lab.heard()
    await lab.executor.tick()
    assert await state(lab, "r3") == (State.RUNNING, 0)


async def test_an_outage_of_the_whole_fleet_rolls_nothing_back(lab: Lab) -> None:
    release = lab.release("1")
    await lab.executor.start(asked(release, 5000, 10_000, bake_s=600.0))
    canaries = lab.cohort(release, 5000)
    lab.installed(release, "r1", canaries)
    lab.window(release, "r1", canaries)
    for _ in range(40):  # nobody is heard for 400 s
        lab.now_s += 10
        await lab.executor.tick()
        assert await state(lab, "r1") == (State.RUNNING, 0)
    for place in range(len(canaries)):  # they come back one after another
        lab.now_s += 1
        lab.window(release, "r1", canaries[: place + 1])
        await lab.executor.tick()
        assert (await state(lab, "r1"))[0] is State.RUNNING


async def test_an_outage_after_the_last_stage_began_rolls_nothing_back(lab: Lab) -> None:
    """Then nobody is left to compare with: the first device that comes back must not condemn the others."""
    release = lab.release("1")
    await lab.executor.start(asked(release, 10_000, bake_s=600.0))
    lab.installed(release, "r1", DEVICES)
    for _ in range(10):
        lab.now_s += 10
        await lab.executor.tick()
    for place in range(len(DEVICES)):
        lab.now_s += 1
        lab.window(release, "r1", DEVICES[: place + 1])
        await lab.executor.tick()
        assert await state(lab, "r1") == (State.RUNNING, 0)


async def test_counts_are_those_of_the_stage(lab: Lab) -> None:
    release = lab.release("1")
    await lab.executor.start(asked(release, 5000, 10_000))
    canaries = lab.cohort(release, 5000)
    lab.installed(release, "r1", canaries)
    lab.now_s += 11
    lab.window(release, "r1", canaries, failures=3)
    await lab.executor.tick()
    assert await state(lab, "r1") == (State.RUNNING, 1)
    await lab.executor.tick()
    lab.now_s += 1
    lab.window(release, "r1", canaries[:1])
    snapshot, _, _ = await lab.executor.observe("r1")
    served, devices = snapshot.served()
    # The window that let the stage begin came in at the very second it began.
    assert (served.requests, devices) == (100 * len(canaries) + 100, len(canaries))
    lab.now_s += 1
    await lab.executor.change("r1", Event.PAUSE)
    await lab.executor.change("r1", Event.RESUME)
    await lab.executor.tick()
    lab.window(release, "r1", canaries[:1])
    snapshot, _, _ = await lab.executor.observe("r1")
    served, devices = snapshot.served()
    assert (served.requests, served.failures, devices) == (100, 0, 1)


async def test_a_decision_about_what_has_changed_meanwhile_is_not_applied(lab: Lab) -> None:
    release = lab.release("1")
    stale = await lab.executor.start(asked(release, 2500, 5000, 10_000))
    advance = records.Change(Event.ADVANCE, "controller", "x", lab.now_s)
    with lab.store.begin() as connection:
        records.apply_change(connection, stale, advance)
    for happening in (Event.ADVANCE, Event.ROLLBACK):
        late = records.Change(happening, "controller", "x", lab.now_s)
        with (
            pytest.raises(ConflictError, match="r1 has changed meanwhile"),
            lab.store.begin() as connection,
        ):
            records.apply_change(connection, stale, late)
    assert await state(lab, "r1") == (State.RUNNING, 1)
    assert [e.action for e in await trail(lab, "r1")] == ["start", "advance"]


async def test_a_restart_of_the_fleet_manager_is_no_silence(lab: Lab) -> None:
    release = lab.release("1")
    await lab.executor.start(asked(release, 5000, 10_000, bake_s=600.0))
    lab.installed(release, "r1", lab.cohort(release, 5000))
    lab.now_s += 3600
    lab.reopen()
    lab.heard([DEVICES[0]])
    await lab.executor.tick()
    assert await state(lab, "r1") == (State.RUNNING, 0)


async def test_a_canary_that_falls_silent_alone_is_a_failure(lab: Lab) -> None:
    release = lab.release("1")
    await lab.executor.start(asked(release, 5000, 10_000, bake_s=600.0))
    canaries = lab.cohort(release, 5000)
    others = sorted(set(DEVICES) - set(canaries))
    lab.installed(release, "r1", canaries)
    lab.window(release, "r1", canaries)
    for _ in range(8):
        lab.now_s += 10
        lab.heard(others)
        await lab.executor.tick()
    assert await state(lab, "r1") == (State.ROLLED_BACK, 0)
    assert f"{len(canaries)} silent" in (await trail(lab, "r1"))[-1].reason


async def test_pause_resume_abort(lab: Lab) -> None:
    release = lab.release("1")
    await lab.executor.start(asked(release, 5000, 10_000))
    await lab.executor.change("r1", Event.PAUSE, reason="lunch")
    assert lab.signed.repository.directives()[0].halt
    lab.failed(release, "r1", DEVICES, "refused", "x")
    await lab.executor.tick()
    assert await state(lab, "r1") == (State.PAUSED, 0)  # nothing is decided meanwhile
    lab.installed(release, "r1", DEVICES)
    lab.now_s += 50
    resumed = await lab.executor.change("latest", Event.RESUME)
    assert resumed.stage_started_s == lab.now_s
    assert not lab.signed.repository.directives()[0].halt
    await lab.executor.change("r1", Event.ABORT)
    directive = lab.signed.repository.directives()[0]
    assert directive.halt
    assert directive.kind == "deploy"
    with pytest.raises(ConflictError, match="rollout r1 is aborted: pause is not possible"):
        await lab.executor.change("r1", Event.PAUSE)
    entries = await trail(lab, "r1")
    assert [e.action for e in entries] == ["start", "pause", "resume", "abort"]
    assert entries[1].reason == "paused by an operator: lunch"
    assert {e.actor for e in entries} == {"operator"}


async def test_an_operator_cannot_promote(lab: Lab) -> None:
    release = lab.release("1")
    await lab.executor.start(asked(release, 5000, 10_000))
    with pytest.raises(RequestError, match="the controller's decision"):
        await lab.executor.change("r1", Event.PROMOTE)


async def test_a_promoted_rollout_can_be_taken_back_until_something_newer(lab: Lab) -> None:
    first, second = lab.release("1"), lab.release("2")
    await promote(lab, first)
    lab.heard()
    await promote(lab, second)
    assert [d.id for d in lab.signed.repository.directives()] == ["r2"]
    with pytest.raises(ConflictError, match="roll r2 back instead"):
        await lab.executor.change("r1", Event.ROLLBACK)
    await lab.executor.change("r2", Event.ROLLBACK, reason="complaints")
    newest, older = lab.signed.repository.directives()
    assert (newest.id, newest.kind) == ("r2", "rollback")
    assert (older.id, older.sha256) == ("r1", first.sha256)
    await lab.executor.change("r1", Event.ROLLBACK)  # and then what came before that


async def test_two_rollouts_on_the_same_devices_conflict(lab: Lab) -> None:
    one, two = lab.release("1"), lab.release("2")
    await lab.executor.start(asked(one, 10_000))
    with pytest.raises(ConflictError, match="rollout r1 of bundles/cam/digits-1 is running"):
        await lab.executor.start(asked(two, 10_000))
    await lab.executor.change("r1", Event.PAUSE)
    with pytest.raises(ConflictError, match="is paused"):
        await lab.executor.start(asked(two, 10_000, selector={"region": "north"}), force=True)
    await lab.executor.change("r1", Event.ABORT)
    north = await lab.executor.start(asked(two, 10_000, selector={"region": "north"}), force=True)
    south = await lab.executor.start(asked(one, 10_000, selector={"region": "south"}), force=True)
    assert (north.number, south.number) == (2, 3)


async def test_what_cannot_start(lab: Lab) -> None:
    missing = asked(lab.release("1"), 10_000, bundle="bundles/cam/digits-9")
    with pytest.raises(NotFoundError, match="bundles/cam/digits-9 is not published"):
        await lab.executor.start(missing)
    release = lab.release("2")
    with pytest.raises(RefusedError, match=r"reaches 0 of 40 devices.*--force"):
        await lab.executor.start(asked(release, 1, 10_000))
    with pytest.raises(RequestError, match="leave class out of the selector"):
        await lab.executor.start(asked(release, 10_000, selector={"class": "edge"}))
    plain = asked(release, 10_000, checks=[{"url": "http://ci.example.com/gate?key=secret"}])
    with pytest.raises(RequestError, match=r"check 1: ci.example.com/gate would be asked .* https"):
        await lab.executor.start(plain, force=True)
    with pytest.raises(NotFoundError, match="there is no rollout 'r7': none has been started"):
        await lab.executor.observe("r7")
    forced = await lab.executor.start(asked(release, 1, 10_000), force=True)
    entries = await trail(lab, forced.id)
    assert "although stage 1 (0.01 %) reaches 0 of 40 devices" in entries[0].reason


async def test_the_release_limits_the_cohort_as_devices_do(lab: Lab) -> None:
    release = lab.release("1", limits=((0, 2000), (3600, 10_000)))
    await lab.executor.start(asked(release, 5000, 10_000))
    snapshot, action, _ = await lab.executor.observe("r1")
    assert [d.device_id for d in snapshot.cohort] == lab.cohort(release, 2000)
    assert action is not None
    assert "the release allows 20 % now, the stage asks 50 %" in action.reason


async def test_a_failing_publication_is_tried_again(lab: Lab) -> None:
    release = lab.release("1")
    broken = True

    async def publish() -> None:
        if broken:
            raise ServerError("no broker")
        await lab.publish()

    lab.executor._publish = publish
    with pytest.raises(
        ServerError, match="r1 is recorded as running, but its directive is not out"
    ):
        await lab.executor.start(asked(release, 10_000))
    broken = False
    await lab.executor.tick()
    assert lab.packs == [lab.signed.repository.pack()]
    await lab.executor.tick()
    assert len(lab.packs) == 1


async def test_one_rollout_that_cannot_be_judged_does_not_stop_the_others(lab: Lab) -> None:
    one, two = lab.release("1"), lab.release("2")
    await lab.executor.start(asked(one, 10_000, selector={"region": "a"}), force=True)
    await lab.executor.start(asked(two, 10_000, selector={"region": "b"}), force=True)
    real = lab.signed.repository.releases

    class Flawed:
        def __getattr__(self, name: str) -> object:
            return getattr(lab.signed.repository, name)

        def releases(self, now_s: float) -> object:
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 1:
                raise ServerError("the disk failed")
            return real(now_s)

    lab.executor._repository = Flawed()  # type: ignore[assignment]
    await lab.executor.tick()
    assert [e.action for e in await trail(lab, "r1")] == ["start"]
    assert [e.action for e in await trail(lab, "r2")] == ["start", "hold"]


async def test_run_looks_again_when_woken_and_survives_errors(lab: Lab) -> None:
    import asyncio

    looks = 0
    seen = asyncio.Event()

    async def tick() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            seen.set()
        raise RuntimeError("unexpected")

    lab.executor.tick = tick  # type: ignore[method-assign]
    task = asyncio.create_task(lab.executor.run())
    lab.executor.wake()
    async with asyncio.timeout(60):
        await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
