"""What is told of a decision, and what is not."""

import json
from dataclasses import replace
from typing import Any

import pytest

from fleet.connect.event_types import EVENT_TYPES
from fleet.connect.events import (
    AGAIN_S,
    body_of,
    change_event,
    event_of_test,
    hold_event,
    start_event,
)
from fleet.rollout.controller import decide
from fleet.rollout.states import Event as Happening
from fleet.rollout.states import State
from tests.fleet.rollout.rollout_builders import good, refused, rollout, snapshot


def said(**changes: Any) -> dict[str, Any]:
    usual = {"at_s": 5.5, "actor": "controller", "reason": "why", "verdict": "pass", "evidence": {}}
    return {**usual, **changes}


def test_every_change_has_a_name_that_can_be_asked_for() -> None:
    running = rollout()
    names = {change_event(running, running, happening, said()).type for happening in Happening}
    assert names | {"rollout.started", "rollout.held"} == set(EVENT_TYPES)
    assert len(set(EVENT_TYPES)) == len(EVENT_TYPES)


def test_a_rollback_is_told_with_its_reason_and_both_arms() -> None:
    taken = snapshot([refused(number) for number in range(10)])
    action = decide(taken)
    assert action is not None
    before = taken.rollout
    after = replace(before, state=State.ROLLED_BACK)
    told = said(reason=action.reason, verdict=str(action.verdict), evidence=action.evidence)
    event = change_event(before, after, Happening.ROLLBACK, told)
    body = body_of(event, "https://fleet.example.com/")
    assert body["type"] == "rollout.rolled_back"
    assert body["timestamp"] == "1970-01-01T00:00:05.500Z"
    data = body["data"]
    assert data["link"] == "https://fleet.example.com/v1/rollouts/r2"
    assert (data["state"], data["from_state"], data["stage"]) == ("rolled_back", "running", 1)
    assert data["reason"].startswith("rolled back in stage 1 of 3 (10 %): 10 of 10 canary devices")
    assert data["numbers"]["canary"]["failed"] == 10
    assert data["numbers"]["control"]["requests"] == 9000
    assert "cam-" not in json.dumps(body).replace("bundles/cam/", "")  # no device is named


def test_an_operators_change_has_no_numbers() -> None:
    event = change_event(rollout(), rollout(), Happening.PAUSE, said(actor="operator"))
    assert event.data["numbers"] == {}
    assert event.data["actor"] == "operator"


def test_a_start_is_told_and_a_test_names_no_rollout() -> None:
    started = start_event(rollout(state=State.WAITING, reason="created; needs approval"))
    assert (started.type, started.data["state"]) == ("rollout.started", "waiting")
    tested = body_of(event_of_test(1.0, "chat"), "http://127.0.0.1:1")
    assert tested["type"] == "webhook.test"
    assert "link" not in tested["data"]


def holds(*blockers: str, at_s: float = 100.0) -> dict[str, Any]:
    return said(at_s=at_s, verdict="hold", blockers=blockers, waits=["more"])


@pytest.mark.parametrize(
    ("blockers", "told"),
    [
        (("coverage", "bake"), None),
        (("comparison", "bake"), None),
        (("coverage",), ["coverage"]),
        (("silence", "coverage", "bake"), ["silence"]),
        (("check", "check", "bake"), ["check"]),
        (("approval",), ["approval"]),
        ((), None),
    ],
)
def test_a_hold_is_told_when_it_is_more_than_a_bake(
    blockers: tuple[str, ...], told: list[str] | None
) -> None:
    event = hold_event(rollout(), holds(*blockers), None)
    assert (None if event is None else event.data["holding"]) == told


def test_a_hold_is_told_again_for_another_cause_after_a_while_and_in_another_stage() -> None:
    one = rollout()
    first = hold_event(one, holds("coverage"), None)
    assert first is not None
    assert first.data["waits"] == ["more"]
    last = {"at_s": first.at_s, "data": first.data}
    assert hold_event(one, holds("coverage", at_s=100_000.0), last) is None
    assert hold_event(one, holds("approval", at_s=100.0 + AGAIN_S - 1), last) is None
    assert hold_event(one, holds("approval", at_s=100.0 + AGAIN_S), last) is not None
    later = rollout(stage=1, stage_started_s=2000.0)
    assert hold_event(later, holds("coverage", at_s=101.0), last) is not None


def test_a_check_that_has_yet_to_answer_is_no_news() -> None:
    finding = {"guard": "check", "verdict": "hold", "evidence": {"url": "x"}}
    told = {**holds("check", "bake"), "evidence": {"findings": [finding]}}
    assert hold_event(rollout(), told, None) is None
    answered = {**finding, "evidence": {"url": "x", "said": "hold"}}
    told = {**told, "evidence": {"findings": [answered, finding]}}
    assert hold_event(rollout(), told, None) is not None


def test_a_good_stage_that_bakes_is_no_news() -> None:
    one = snapshot([good(number) for number in range(10)], now_s=1_050.0)
    action = decide(one)
    assert action is not None
    told = holds(*action.blockers)
    assert "bake" in action.blockers
    assert hold_event(one.rollout, told, None) is None
