"""The controller over tables of snapshots, and its rules over generated ones."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.rollout.controller import Step, decide
from fleet.rollout.gate import Finding, Verdict, combine
from fleet.rollout.snapshot import ControlArm, DeviceView, Served, Snapshot, Standing
from fleet.rollout.spec import Guards, Stage, StageKind, Strategy
from fleet.rollout.states import State
from tests.fleet.rollout.rollout_builders import (
    NOW_S,
    STAGES,
    STARTED_S,
    good,
    offline,
    refused,
    rollout,
    served,
    silent,
    snapshot,
    spec,
    waiting,
)

LAST = rollout(stage=2)


def many(count: int, make: Callable[[int], DeviceView] = good, first: int = 0) -> list[DeviceView]:
    return [make(number) for number in range(first, first + count)]


def faulty(**counts: int) -> Callable[[int], DeviceView]:
    return lambda number: good(number, served=served(100, **counts))


@dataclass(frozen=True)
class Row:
    what: str
    cohort: list[DeviceView]
    step: Step
    says: str
    changes: dict[str, Any]


def row(what: str, cohort: list[DeviceView], step: Step, says: str, **changes: Any) -> Row:
    return Row(what, cohort, step, says, changes)


IN_PROBATION = good(90, phase="probation", outcome="", committed_s=None, serves=False)

TABLE = [
    # --- going on
    row("all good", many(10), Step.ADVANCE, "going on to stage 2 of 3 (50 %)"),
    row("all good, last stage", many(10), Step.PROMOTE, "promoted: ", rollout=LAST),
    row(
        "8 of 10 is enough",
        [*many(8), *many(2, waiting, 8)],
        Step.ADVANCE,
        "8 of 10 canary devices have committed and reported",
    ),
    row(
        "offline ones are not waited for", [*many(8), *many(5, offline, 8)], Step.ADVANCE, "8 of 8"
    ),
    row(
        "it had the bundle before",
        many(4, lambda n: good(n, phase="", outcome="", committed_s=None)),
        Step.ADVANCE,
        "4 of 4",
    ),
    row(
        "a deployment called off and not begun again is waited for, as one that has not begun",
        [*many(9), good(9, outcome="cancelled", committed_s=None, serves=False)],
        Step.ADVANCE,
        "9 of 10",
    ),
    # --- holding
    row("nobody", [], Step.HOLD, "no device is in the cohort of stage 1 of 3 (10 %)"),
    row("all offline", many(5, offline), Step.HOLD, "none of the 5 canary devices has been heard"),
    row(
        "7 of 10 only",
        [*many(7), *many(3, waiting, 7)],
        Step.HOLD,
        "holding: 7 of 10 canary devices have committed and reported; 80 % are needed",
    ),
    row(
        "the bake is not over",
        many(10),
        Step.HOLD,
        "stage 1 of 3 (10 %) bakes until 1970-01-01 00:18:30 UTC",
        rollout=rollout(stage_started_s=STARTED_S + 50),
    ),
    row(
        "committed, no window since",
        many(10, lambda n: good(n, committed_s=NOW_S - 0.5)),
        Step.HOLD,
        "0 of 10 canary devices have committed and reported",
    ),
    row(
        "no window since the stage began",
        many(10, lambda n: good(n, served=served(last_window_s=STARTED_S - 1))),
        Step.HOLD,
        "0 of 10 canary devices",
    ),
    row(
        "no requests",
        many(10, lambda n: good(n, served=served(0))),
        Step.HOLD,
        "holding: 0 requests on 0 devices so far; rates need 100 on 2",
    ),
    row(
        "no requests is no rate, whatever the limits say",
        many(10, lambda n: good(n, served=served(0))),
        Step.HOLD,
        "0 requests on 0 devices so far",
        rollout=rollout(spec=spec(guards=replace(spec().guards, min_requests=0, min_devices=0))),
    ),
    row(
        "requests on one device only",
        [good(0, served=served(500)), *many(9, lambda n: good(n, served=served(0)), 1)],
        Step.HOLD,
        "500 requests on 1 device so far; rates need 100 on 2",
    ),
    row("too few devices", many(1), Step.HOLD, "at least 2 devices are needed"),
    row(
        "the whole fleet is silent",
        [*many(5, silent), *many(5, first=5)],
        Step.HOLD,
        "so are 60 of 90 devices without the bundle",
        control=ControlArm(90, 90, 60),
    ),
    row(
        "nobody was heard for a while",
        many(10, silent),
        Step.HOLD,
        "waiting for them to come back",
        listening_since_s=NOW_S - 5,
    ),
    row(
        "everyone has it and nobody is heard",
        many(10, silent),
        Step.HOLD,
        "no device without the bundle is left",
        rollout=LAST,
        control=ControlArm(),
    ),
    row(
        "the release is slower",
        many(10),
        Step.HOLD,
        "the release allows 1 % now, the stage asks 10 %; from 1970-01-01 01:23:20 UTC it allows 5 %",
        limit_bp=100,
        limit_next=(5000.0, 500),
    ),
    row(
        "slow installs are not failures before the deadline",
        many(10, lambda n: DeviceView(f"cam-{n}", NOW_S, phase="fetch")),
        Step.HOLD,
        "0 of 10 canary devices",
    ),
    row(
        "one refused of the first two",
        [good(0), refused(1), *many(18, waiting, 2)],
        Step.HOLD,
        "2 of the 5 installs needed for a failure rate have finished",
    ),
    # --- rolling back
    row(
        "everyone refuses",
        many(10, refused),
        Step.ROLLBACK,
        "rolled back in stage 1 of 3 (10 %): 10 of 10 canary devices that have begun failed "
        "(100 %; the limit is 10 %): 10 refused (trial_golden_failed)",
    ),
    row(
        "so many refuse that the rest cannot make up for it",
        [*many(3, refused), *many(7, waiting, 3)],
        Step.ROLLBACK,
        "3 of 3 canary devices that have begun failed",
    ),
    row(
        "reverted after serving",
        [*many(8), *many(2, lambda n: good(n, outcome="reverted", reason_code="error_rate"), 8)],
        Step.ROLLBACK,
        "2 reverted (error_rate)",
    ),
    row(
        "silent alone",
        [*many(8), *many(2, silent, 8)],
        Step.ROLLBACK,
        "2 of 10 canary devices that have begun failed (20 %; the limit is 10 %): 2 silent",
    ),
    row(
        "silent in probation",
        [*many(4), *many(4, lambda n: replace(IN_PROBATION, last_heard_s=NOW_S - 40), 4)],
        Step.ROLLBACK,
        "4 silent",
    ),
    row(
        "stuck past the deadline",
        [*many(5), *many(5, lambda n: DeviceView(f"cam-{n}", NOW_S, phase="fetch"), 5)],
        Step.ROLLBACK,
        "5 stuck",
        rollout=rollout(spec=spec(install_deadline_s=50.0)),
    ),
    row(
        "errors, before the bake is over",
        many(10, faulty(failures=8)),
        Step.ROLLBACK,
        "the error rate is 8 % (80 of 1000 requests on 10 devices); the limit is 5 %",
        rollout=rollout(stage_started_s=STARTED_S + 50),
    ),
    row(
        "a rate above its limit by chance",
        many(10, faulty(failures=6)),
        Step.HOLD,
        "the error rate is 6 % (60 of 1000 requests on 10 devices); the limit is 5 %, which may "
        "still be chance",
    ),
    row(
        "the first to finish are those that fail",
        [*many(10, refused), *many(190, lambda n: IN_PROBATION, 10)],
        Step.HOLD,
        "10 of the first 10 installs failed (limit 10 %); 190 devices have not finished",
    ),
    row(
        "every request fails",
        many(10, faulty(failures=100)),
        Step.ROLLBACK,
        "the error rate is 100 % (1000 of 1000 requests on 10 devices)",
    ),
    row(
        "slow",
        many(10, faulty(over_objective=26)),
        Step.ROLLBACK,
        "the share of requests over the latency objective is 26 %",
    ),
    row(
        "outside the contract",
        many(10, faulty(output_violations=10)),
        Step.ROLLBACK,
        "the share of outputs outside the contract is 10 %",
    ),
    row(
        "two reasons are both told",
        many(10, faulty(failures=50, over_objective=50)),
        Step.ROLLBACK,
        "(500 of 1000 requests on 10 devices); the limit is 5 %; the share of requests over",
    ),
    row(
        "at the limit is not over it",
        many(10, faulty(failures=5, over_objective=20, output_violations=5)),
        Step.ADVANCE,
        "the error rate is 5 % (50 of 1000 requests; limit 5 %)",
    ),
]


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.what)
def test_table(case: Row) -> None:
    seen = snapshot(case.cohort, **case.changes)
    action = decide(seen)
    assert action is not None
    assert (action.step, case.says in action.reason) == (case.step, True), action.reason
    assert decide(seen) == action


@pytest.mark.parametrize("state", [state for state in State if state is not State.RUNNING])
def test_only_a_running_rollout_is_decided_about(state: State) -> None:
    assert decide(snapshot(many(10, refused), rollout=rollout(state=state))) is None


def test_no_guard_at_all_holds() -> None:
    action = decide(snapshot(many(10)), guards=())
    assert action is not None
    assert action.step is Step.HOLD
    assert combine([]).verdict is Verdict.HOLD


def test_findings_combine_by_the_worst() -> None:
    by_verdict = {
        verdict: Finding(str(verdict), verdict, f"because {verdict}") for verdict in Verdict
    }
    for one in Verdict:
        for other in Verdict:
            worst = max(one, other, key=list(Verdict).index)
            assert combine([by_verdict[one], by_verdict[other]]).verdict is worst


def test_a_guard_that_is_off_is_not_asked() -> None:
    off = Guards(
        max_install_failure_rate=None, max_error_rate=0.05, min_requests=100, silence_s=30.0
    )
    action = decide(snapshot(many(10, refused), rollout=rollout(spec=spec(guards=off))))
    assert action is not None
    assert action.step is Step.HOLD
    assert "install_failures" not in [f["guard"] for f in action.evidence["findings"]]


def test_the_evidence_has_both_arms_and_every_finding() -> None:
    action = decide(snapshot([*many(8), *many(2, waiting, 8)]))
    assert action is not None
    assert action.evidence["cohort"]["targeted"] == 10
    assert action.evidence["cohort"]["requests"] == 800
    assert action.evidence["control"]["requests"] == 9000
    guards = [finding["guard"] for finding in action.evidence["findings"]]
    assert guards == [
        "coverage", "install_failures", "error_rate", "over_latency_rate",
        "output_violation_rate", "outcomes", "silence", "release_limit", "bake",
    ]  # fmt: skip


# --- rules over generated snapshots ---------------------------------------------------------------

PHASES = ("", "idle", "fetch", "verify", "try", "swap", "probation", "commit", "revert")
OUTCOMES = ("", "committed", "refused", "reverted", "cancelled")


@st.composite
def views(draw: st.DrawFn) -> DeviceView:
    phase = draw(st.sampled_from(PHASES))
    outcome = draw(st.sampled_from(OUTCOMES)) if phase else ""
    requests = draw(st.integers(0, 300))
    window = draw(st.none() | st.floats(STARTED_S - 100, NOW_S))
    heard = max(window or 0.0, draw(st.floats(NOW_S - 600, NOW_S)))
    return DeviceView(
        device_id="x",
        last_heard_s=heard,
        phase=phase,
        outcome=outcome,
        reason_code="x" if outcome else "",
        committed_s=draw(st.floats(STARTED_S, NOW_S)) if outcome == "committed" else None,
        serves=draw(st.booleans()),
        served=Served(
            requests=requests if window else 0,
            failures=draw(st.integers(0, requests)) if window else 0,
            over_objective=draw(st.integers(0, requests)) if window else 0,
            output_violations=draw(st.integers(0, requests)) if window else 0,
            last_window_s=window,
        ),
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    # Mostly healthy cohorts, so that PASS is reached often enough to mean something.
    healthy = many(draw(st.integers(0, 8)))
    odd = draw(st.lists(views(), max_size=4))
    active = draw(st.integers(0, 50))
    return snapshot(
        [*healthy, *odd],
        rollout=rollout(
            stage=draw(st.integers(0, 2)),
            stage_started_s=draw(st.sampled_from([STARTED_S, NOW_S - 30])),
        ),
        control=ControlArm(60, active, draw(st.integers(0, active))),
        listening_since_s=draw(st.sampled_from([0.0, NOW_S - 5])),
    )


RANK = {Step.ADVANCE: 0, Step.PROMOTE: 0, Step.HOLD: 1, Step.ROLLBACK: 2}


def verdict(seen: Snapshot) -> Verdict:
    action = decide(seen)
    assert action is not None
    return action.verdict


@given(snapshots())
@settings(max_examples=100)
def test_the_same_snapshot_gets_the_same_answer(seen: Snapshot) -> None:
    assert decide(seen) == decide(seen)


@given(snapshots())
@settings(max_examples=100)
def test_each_device_has_one_standing_and_all_are_counted(seen: Snapshot) -> None:
    tally = seen.tally()
    assert sum(tally.standings.values()) == tally.targeted == len(seen.cohort)
    assert 0 <= tally.failed + tally.installed <= tally.reachable <= tally.targeted


@given(snapshots())
@settings(max_examples=100)
def test_no_data_never_passes(seen: Snapshot) -> None:
    mute = [replace(device, served=Served()) for device in seen.cohort]
    assert verdict(replace(seen, cohort=tuple(mute))) is not Verdict.PASS


@given(snapshots())
@settings(max_examples=100)
def test_nothing_reported_since_the_stage_began_never_passes(seen: Snapshot) -> None:
    stale = [
        replace(device, served=replace(device.served, last_window_s=STARTED_S - 1))
        for device in seen.cohort
    ]
    assert verdict(replace(seen, cohort=tuple(stale))) is not Verdict.PASS


@given(snapshots(), st.data())
@settings(max_examples=200)
def test_worse_data_never_turns_fail_into_pass(seen: Snapshot, data: st.DataObject) -> None:
    if not seen.cohort:
        return
    place = data.draw(st.integers(0, len(seen.cohort) - 1))
    device = seen.cohort[place]
    count = device.served
    worse = data.draw(
        st.sampled_from(
            [
                replace(device, outcome="refused", phase="try", reason_code="x"),
                replace(device, outcome="reverted", phase="revert", reason_code="x"),
                replace(device, last_heard_s=NOW_S - 600),
                replace(device, served=replace(count, failures=count.requests)),
                replace(device, served=replace(count, over_objective=count.requests)),
                replace(device, served=replace(count, output_violations=count.requests)),
            ]
        )
    )
    cohort = (*seen.cohort[:place], worse, *seen.cohort[place + 1 :])
    before, after = verdict(seen), verdict(replace(seen, cohort=cohort))
    if before is Verdict.FAIL:
        assert after is not Verdict.PASS
    if before is Verdict.HOLD and worse.outcome in ("refused", "reverted"):
        assert after is not Verdict.PASS or seen.standing(device) is not Standing.REPORTED


@given(snapshots())
@settings(max_examples=100)
def test_missing_devices_never_roll_back(seen: Snapshot) -> None:
    """Who was not heard from at all since long before, and has begun nothing, blames nobody."""
    gone = [DeviceView(device.device_id, NOW_S - 10_000) for device in seen.cohort]
    assert verdict(replace(seen, cohort=tuple(gone))) is Verdict.HOLD


# --- strata, approval, kinds of stages ------------------------------------------------------------


@dataclass(frozen=True)
class Says:
    """A guard that always finds this."""

    verdict: Verdict
    evidence: dict[str, Any]
    name: str = "cohorts"

    def judge(self, _snapshot: Snapshot) -> Finding:
        return Finding(self.name, self.verdict, f"{self.name} says {self.verdict}", self.evidence)


STOP = {"stop_strata": ["cam/cuda"], "strata": ["cam/cpu", "cam/cuda"]}


@pytest.mark.parametrize(
    ("others", "stopped", "step"),
    [
        ([Verdict.PASS], [], Step.STOP_STRATUM),
        ([Verdict.HOLD], [], Step.STOP_STRATUM),
        ([], [], Step.STOP_STRATUM),
        ([Verdict.FAIL], [], Step.ROLLBACK),
        ([Verdict.PASS], ["cam/cpu"], Step.ROLLBACK),  # no other is left
    ],
)
def test_a_stratum_that_is_blamed_is_stopped_alone(
    others: list[Verdict], stopped: list[str], step: Step
) -> None:
    guards = [Says(Verdict.FAIL, STOP), *(Says(verdict, {}, "other") for verdict in others)]
    now = snapshot(many(10), rollout=rollout(details={"stopped": stopped}))
    action = decide(now, guards)
    assert action is not None
    assert action.step is step
    assert action.strata == (("cam/cuda",) if step is Step.STOP_STRATUM else ())
    assert decide(now, guards) == action


def test_a_stratum_that_was_stopped_is_not_stopped_again() -> None:
    now = snapshot(many(10), rollout=rollout(details={"stopped": ["cam/cuda"]}))
    action = decide(now, [Says(Verdict.PASS, STOP)])
    assert action is not None
    assert action.step is Step.ADVANCE


ASKING = (STAGES[0], replace(STAGES[1], approval=True), STAGES[2])


def test_the_next_stage_waits_for_its_approval() -> None:
    waits = rollout(spec=spec(stages=ASKING))
    held = decide(snapshot(many(10), rollout=waits))
    assert held is not None
    assert held.step is Step.HOLD
    assert held.reason == (
        "holding: stage 2 of 3 (50 %) needs approval: `fleet rollout approve r2`"
    )
    approved = replace(waits, details={"approved": [1]})
    action = decide(snapshot(many(10), rollout=approved))
    assert action is not None
    assert action.step is Step.ADVANCE
    failing = decide(snapshot(many(10, refused), rollout=approved))
    assert failing is not None
    assert failing.step is Step.ROLLBACK


def beside(number: int) -> DeviceView:
    return good(number, phase="beside", outcome="", committed_s=None, serves=False)


def test_on_standby_nothing_that_is_served_is_waited_for() -> None:
    stages = (Stage(10_000, 60.0, StageKind.STANDBY), Stage(10_000, 60.0))
    standby = rollout(spec=spec(stages=stages, strategy=Strategy.BLUE_GREEN))
    ready = many(10, lambda number: replace(beside(number), served=Served()))
    action = decide(snapshot(ready, rollout=standby))
    assert action is not None
    assert action.step is Step.ADVANCE
    quiet = many(10, lambda n: replace(beside(n), last_heard_s=STARTED_S - 1, served=Served()))
    held = decide(snapshot(quiet, rollout=standby, listening_since_s=NOW_S))
    assert held is not None
    assert held.step is Step.HOLD


def test_a_shadow_is_judged_by_what_it_would_have_answered() -> None:
    stages = (Stage(1000, 60.0, StageKind.SHADOW, traffic_bp=1000), Stage(10_000, 60.0))
    shadow = rollout(spec=spec(stages=stages, strategy=Strategy.SHADOW_THEN_CANARY))
    action = decide(snapshot(many(10, beside), rollout=shadow))
    assert action is not None
    assert action.step is Step.ADVANCE
    wrong = many(10, lambda number: replace(beside(number), served=served(100, failures=50)))
    failing = decide(snapshot(wrong, rollout=shadow))
    assert failing is not None
    assert failing.step is Step.ROLLBACK
    answering = rollout(spec=spec(stages=stages, strategy=Strategy.SHADOW_THEN_CANARY), stage=1)
    taken = snapshot(many(10, beside), rollout=answering)
    assert {taken.standing(device) for device in taken.cohort} == {Standing.UNDER_WAY}


def test_deadlines_wait_for_ramps_and_maintenance_windows() -> None:
    under_way = good(1, phase="fetch", outcome="", committed_s=None, serves=False)

    def standing(**changes: Any) -> Standing:
        asked = spec(install_deadline_s=60.0, **changes)
        return snapshot([under_way], rollout=rollout(spec=asked)).standing(under_way)

    assert standing() is Standing.STUCK
    ramped = replace(STAGES[0], devices_per_minute=1.0, ramp_s=50.0)
    assert standing(stages=(ramped, *STAGES[1:])) is Standing.UNDER_WAY
    assert standing(open_hours=("01:00-05:00",)) is Standing.UNDER_WAY


def test_the_reason_of_a_promotion_says_who_follows() -> None:
    stages = (Stage(9500, 60.0),)
    held = rollout(spec=spec(stages=stages, hold_back="5%", hold_back_bp=500))
    action = decide(snapshot(many(10), rollout=held))
    assert action is not None
    assert action.reason.startswith("promoted: the 5 % held back follow; 10 of 10")
