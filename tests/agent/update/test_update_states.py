"""The table of states, looked at from every side."""

import itertools

import pytest

from agent.update import Event, Phase, TransitionError
from agent.update.states import (
    BEFORE_SWAP,
    NOT_SWAPPED,
    ON_RESTART,
    TRANSITIONS,
    Counter,
    next_phase,
    to_mermaid,
)

UNDER_WAY = [phase for phase in Phase if phase is not Phase.IDLE]


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, Event)))
def test_every_pair_is_in_the_table_or_raises(phase, event):
    if (phase, event) in TRANSITIONS:
        assert next_phase(phase, event) is TRANSITIONS[phase, event]
        return
    with pytest.raises(TransitionError, match=f"{phase.value!r} cannot take event {event.value!r}"):
        next_phase(phase, event)


@pytest.mark.parametrize("phase", UNDER_WAY)
def test_every_phase_under_way_has_a_rule_for_restarts_and_a_way_to_its_end(phase):
    rule = ON_RESTART[phase]
    assert (phase, Event.RESTARTED) in TRANSITIONS
    assert (rule.counter is Counter.NONE) == (rule.over is None)
    if rule.over is not None:
        assert (phase, rule.over) in TRANSITIONS
        assert rule.reason_code
    reached = {phase}
    while new := {TRANSITIONS[p, e] for p, e in TRANSITIONS if p in reached} - reached:
        reached |= new
    assert Phase.IDLE in reached


def test_a_bundle_that_may_have_served_ends_only_by_commit_or_revert():
    ends = {(p, e) for (p, e), after in TRANSITIONS.items() if after is Phase.IDLE}
    assert {p for p, _ in ends} == NOT_SWAPPED | {Phase.COMMIT, Phase.REVERT}
    for phase in BEFORE_SWAP:
        assert {e for p, e in ends if p is phase} == {Event.REFUSED, Event.CANCELLED}
    assert {Phase.BESIDE} == NOT_SWAPPED - BEFORE_SWAP


def test_swap_is_reached_only_through_a_passed_trial_or_after_a_restart():
    ways = {(p, e) for (p, e), after in TRANSITIONS.items() if after is Phase.SWAP}
    assert ways == {
        (Phase.TRY, Event.TRIED),
        (Phase.BESIDE, Event.TAKEN),
        (Phase.SWAP, Event.RESTARTED),
        (Phase.PROBATION, Event.RESTARTED),
    }


def test_beside_is_reached_only_through_a_passed_trial_or_after_a_restart():
    ways = {(p, e) for (p, e), after in TRANSITIONS.items() if after is Phase.BESIDE}
    assert ways == {(Phase.TRY, Event.PLACED), (Phase.BESIDE, Event.RESTARTED)}


def test_every_event_and_phase_is_used():
    assert {e for _, e in TRANSITIONS} == set(Event)
    assert {p for p, _ in TRANSITIONS} == set(Phase)


def test_the_diagram_has_every_transition():
    text = to_mermaid()
    assert text.startswith("stateDiagram-v2\n    [*] --> idle\n")
    for (phase, event), after in TRANSITIONS.items():
        assert f"    {phase.value} --> {after.value}: {event.value}\n" in text
