"""What a rollout waits for is said in words that tell what would make it go on."""

from dataclasses import replace
from typing import Any

import pytest

from fleet.rollout.controller import Action, Step, decide
from fleet.rollout.gate import Verdict
from fleet.rollout.outlook import waits_of
from fleet.rollout.snapshot import CheckAnswer, Snapshot
from fleet.rollout.spec import Check, Stage
from fleet.rollout.states import State
from tests.fleet.rollout.rollout_builders import (
    NOW_S,
    STARTED_S,
    good,
    rollout,
    silent,
    snapshot,
    spec,
    waiting,
)


def words(seen: Snapshot) -> list[str]:
    return [wait.words for wait in waits_of(seen.rollout, decide(seen))]


def test_each_thing_that_is_missing_is_a_number_and_told_once() -> None:
    seen = snapshot([good(0), *(waiting(number) for number in range(1, 10))], now_s=STARTED_S + 50)
    seen = replace(
        seen, cohort=tuple(replace(one, last_heard_s=STARTED_S + 49) for one in seen.cohort)
    )
    waits = waits_of(seen.rollout, decide(seen))
    assert [wait.words for wait in waits] == [
        "7 more canary devices committed and reported (1 of 10 so far)",
        "4 more installs finished",
        "requests on 1 more device served with the bundle",
        "the bake of stage 1 of 3 (10 %) over",
    ]
    assert [wait.until_s for wait in waits] == [None, None, None, STARTED_S + 60]


def test_what_a_person_can_do_comes_first() -> None:
    check = Check("https://ci.example.com/gate", every_s=20.0)
    stages = (Stage(5000, 60.0), Stage(10_000, 60.0, approval=True))
    asked = rollout(spec=spec(checks=(check,), stages=stages))
    answer = CheckAnswer(check.url, STARTED_S, NOW_S - 1, NOW_S, "hold", "a test is red")
    seen = snapshot([good(0), good(1), silent(2)], rollout=asked, checks=(answer,))
    assert words(seen)[:2] == [
        "stage 2 of 2 (100 %) needs approval: `fleet rollout approve r2`",
        "a pass from ci.example.com/gate (it says hold)",
    ]
    assert waits_of(asked, decide(seen))[1].until_s == NOW_S + 19


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (State.WAITING, ["approve it: `fleet rollout approve r2`"]),
        (State.PAUSED, ["resume it: `fleet rollout resume r2`"]),
        (State.PROMOTED, []),
    ],
)
def test_where_nothing_is_decided(state: State, said: list[str]) -> None:
    assert words(snapshot([], rollout=rollout(state=state))) == said


def test_what_goes_on_or_back_waits_for_nothing() -> None:
    assert words(snapshot([good(number) for number in range(10)])) == []


def finding(guard: str, reason: str, **evidence: Any) -> dict[str, Any]:
    return {"guard": guard, "verdict": "hold", "reason": reason, "evidence": evidence}


def test_a_comparison_says_when_it_looks_again_and_a_reason_stands_where_no_number_does() -> None:
    found = [
        finding("comparison", "only a 1.9x change can be seen", look={}, next_look_s=7.0),
        finding(
            "coverage", "no device is in the cohort", reported=0, reachable=0, needed_share=0.8
        ),
    ]
    action = Action(Step.HOLD, Verdict.HOLD, "holding", {"findings": found})
    waits = waits_of(rollout(), action)
    assert [(wait.words, wait.until_s) for wait in waits] == [
        ("only a 1.9x change can be seen", 7.0),
        ("no device is in the cohort", None),
    ]
    first = Action(Step.HOLD, Verdict.HOLD, "", {"findings": [finding("comparison", "x")]})
    assert waits_of(rollout(), first)[0].words == "the first look at both arms"
