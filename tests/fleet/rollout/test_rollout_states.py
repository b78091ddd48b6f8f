"""Every pair of state and event is either in the table or refused with what is possible."""

import itertools

import pytest

from fleet.errors import ConflictError
from fleet.rollout.states import (
    ACTIVE,
    FINAL,
    TRANSITIONS,
    Event,
    State,
    allowed,
    next_state,
    to_mermaid,
)

PAIRS = list(itertools.product(State, Event))


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_every_pair(state: State, event: Event) -> None:
    expected = TRANSITIONS.get((state, event))
    if expected is not None:
        assert next_state(state, event, "r7") is expected
        return
    with pytest.raises(ConflictError) as caught:
        next_state(state, event, "r7")
    message = str(caught.value)
    assert "r7" in message
    assert str(event) in message
    for possible in allowed(state):
        assert str(possible) in message


def test_every_state_is_reached_and_is_either_active_or_final() -> None:
    assert {State.RUNNING, State.WAITING, *TRANSITIONS.values()} == set(State)
    assert set(State) == ACTIVE | FINAL
    assert not ACTIVE & FINAL


def test_what_is_final_is_only_taken_back() -> None:
    for state in FINAL:
        assert set(allowed(state)) <= {Event.ROLLBACK, Event.STOP_STRATUM}
        assert all(next_state(state, event, "r7") in FINAL for event in allowed(state))
    assert allowed(State.ROLLED_BACK) == ()


def test_a_paused_rollout_never_goes_on_by_itself() -> None:
    assert not {Event.ADVANCE, Event.PROMOTE} & set(allowed(State.PAUSED))


def test_the_diagram_has_every_transition() -> None:
    diagram = to_mermaid()
    assert diagram.startswith("stateDiagram-v2\n")
    for (state, event), after in TRANSITIONS.items():
        assert f"{state} --> {after}: {event}\n" in diagram
