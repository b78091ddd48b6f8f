"""External checks: what an answer means, when one is due, and what the guard makes of it."""

from dataclasses import replace

import pytest

from fleet.rollout.checks import CheckGuard, due_checks, parameters, verdict_of
from fleet.rollout.controller import Step, decide
from fleet.rollout.gate import Verdict
from fleet.rollout.preserved import snapshot_from_bytes, snapshot_to_bytes
from fleet.rollout.snapshot import CheckAnswer, Snapshot
from fleet.rollout.spec import Check, Stage, StageKind
from tests.fleet.rollout.rollout_builders import NOW_S, STARTED_S, good, rollout, snapshot, spec

URL = "https://user:pw@ci.example.com/gate?token=secret"
CHECK = Check(URL, timeout_s=5.0, every_s=20.0)


def answered(verdict: str = "pass", **changes: object) -> CheckAnswer:
    answer = CheckAnswer(URL, STARTED_S, NOW_S - 11, NOW_S - 10, verdict, "tests are green")
    return replace(answer, **changes)  # type: ignore[arg-type]


def checked(*answers: CheckAnswer) -> Snapshot:
    asked = rollout(spec=spec(checks=(CHECK,)))
    return snapshot([good(number) for number in range(10)], rollout=asked, checks=answers)


@pytest.mark.parametrize(
    ("status", "body", "verdict", "reason"),
    [
        (200, b'{"verdict": "pass", "reason": " all\\n green "}', Verdict.PASS, "all green"),
        (201, b'{"verdict": "fail"}', Verdict.FAIL, ""),
        (200, b'{"verdict": "hold", "reason": 7}', Verdict.HOLD, ""),
        (200, b'{"verdict": "fail", "reason": "a\\u0007b"}', Verdict.FAIL, "a?b"),
        (200, b" \n", Verdict.PASS, ""),
        (204, b"", Verdict.PASS, ""),
        (200, b"<html>log in</html>", Verdict.HOLD, "something that is no JSON"),
        (200, b"\xff", Verdict.HOLD, "no JSON"),
        (200, b"[" * 60_000, Verdict.HOLD, "no JSON"),
        (200, b'{"verdict": "PASS"}', Verdict.HOLD, "has no verdict"),
        (200, b'{"verdict": ["pass"]}', Verdict.HOLD, "has no verdict"),
        (200, b'["pass"]', Verdict.HOLD, "has no verdict"),
        (302, b'{"verdict": "pass"}', Verdict.HOLD, "answered with status 302"),
        (500, b'{"verdict": "fail"}', Verdict.HOLD, "answered with status 500"),
    ],
)
def test_only_a_clear_answer_counts(
    status: int, body: bytes, verdict: Verdict, reason: str
) -> None:
    found = verdict_of(status, body)
    assert found[0] is verdict
    assert reason in found[1]


def test_a_long_reason_is_cut() -> None:
    assert len(verdict_of(200, b'{"verdict": "hold", "reason": "%s"}' % (b"x" * 9000))[1]) == 300


@pytest.mark.parametrize(
    ("answers", "step", "says"),
    [
        ((), Step.HOLD, "check ci.example.com/gate has not answered about this stage yet"),
        ((answered(),), Step.ADVANCE, "check ci.example.com/gate says pass: tests are green"),
        ((answered("hold"),), Step.HOLD, "holding: check ci.example.com/gate says hold: tests are"),
        (
            (answered("fail"),),
            Step.ROLLBACK,
            "rolled back in stage 1 of 3 (10 %): check ci.example",
        ),
        ((answered(stage_started_s=1.0),), Step.HOLD, "has not answered about this stage yet"),
        ((answered("fail", url="https://other"),), Step.HOLD, "has not answered"),
        (
            (answered("fail", answered_s=NOW_S - 66),),
            Step.HOLD,
            "fail 66 s ago, too long ago to count",
        ),
        ((answered(answered_s=NOW_S - 64),), Step.ADVANCE, "says pass"),
    ],
)
def test_a_stage_goes_on_with_a_pass_alone(
    answers: tuple[CheckAnswer, ...], step: Step, says: str
) -> None:
    action = decide(checked(*answers))
    assert action is not None
    assert (action.step, says in action.reason) == (step, True), action.reason
    assert "secret" not in str(action.evidence)
    assert "pw" not in str(action.evidence)


def test_a_standby_stage_is_checked_too() -> None:
    stages = (Stage(10_000, 60.0, StageKind.STANDBY), Stage(10_000, 60.0))
    asked = rollout(spec=spec(checks=(CHECK,), stages=stages))
    action = decide(snapshot([good(1), good(2)], rollout=asked))
    assert action is not None
    assert "check" in action.blockers


def test_what_was_kept_decides_the_same_again() -> None:
    before = checked(answered("fail"))
    after, _ = snapshot_from_bytes(snapshot_to_bytes(before))
    assert after.checks == before.checks
    assert decide(after) == decide(before)


def test_a_check_is_due_at_once_and_then_every_so_often() -> None:
    asked = rollout(spec=spec(checks=(CHECK,)))
    assert due_checks(asked, (), NOW_S) == (CHECK,)
    assert due_checks(asked, (answered(),), NOW_S - 11 + 19.9) == ()
    assert due_checks(asked, (answered(),), NOW_S - 11 + 20.0) == (CHECK,)
    resumed = rollout(spec=spec(checks=(CHECK,)), stage_started_s=STARTED_S + 1)
    assert due_checks(resumed, (answered(),), NOW_S) == (CHECK,)


def test_the_guard_alone_is_pure_and_names_the_url_without_its_secrets() -> None:
    guard = CheckGuard(CHECK)
    one = checked(answered())
    assert guard.judge(one) == guard.judge(one)
    assert parameters(one.rollout)["stage"] == "1"
