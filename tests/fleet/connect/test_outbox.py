"""The outbox: order, places, waiting, giving up, pruning."""

import uuid

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.connect import outbox
from fleet.connect.events import Event
from fleet.connect.patience import Patience
from fleet.store.engine import Store

DAY_S = 86_400.0
PATIENCE = Patience(most_pending=3)
ALL = ("rollout.stage", "rollout.held")


def event(number: int, kind: str = "rollout.stage", at_s: float = 0.0) -> Event:
    return Event(kind, at_s, "r1", "/v1/rollouts/r1", {"number": number})


def fill(store: Store, *events: Event) -> None:
    with store.begin() as connection:
        for one in events:
            outbox.add(connection, one)


def register(store: Store, **wanted: tuple[str, ...]) -> None:
    with store.begin() as connection:
        outbox.register(connection, wanted)


def number_of(store: Store, name: str) -> int | None:
    with store.read() as connection:
        pending = outbox.next_pending(connection, name)
    return None if pending is None else pending.event.data["number"]


def deliver(store: Store, name: str, now_s: float = 1.0) -> None:
    with store.begin() as connection:
        pending = outbox.next_pending(connection, name)
        assert pending is not None
        for _ in range(2):  # repeated, it counts once
            outbox.delivered(connection, name, pending.number, now_s)


def fail(store: Store, name: str, now_s: float, asked_s: float = 0.0) -> int:
    with store.begin() as connection:
        return outbox.failed(connection, name, "no", (now_s, asked_s), PATIENCE)


def place(store: Store, name: str) -> outbox.Place:
    with store.read() as connection:
        return next(one for one in outbox.places(connection) if one.name == name)


def test_each_webhook_gets_what_it_asked_for_in_order_from_its_start_on(store: Store) -> None:
    fill(store, event(1))
    register(store, a=ALL, b=("rollout.held",))
    fill(store, event(2), event(3, "rollout.held"), event(4))
    assert (number_of(store, "a"), number_of(store, "b")) == (2, 3)
    deliver(store, "a")
    assert (number_of(store, "a"), number_of(store, "b")) == (3, 3)
    deliver(store, "b", 9.0)
    assert number_of(store, "b") is None
    assert (place(store, "a").pending, place(store, "a").delivered) == (2, 1)
    assert (place(store, "b").pending, place(store, "b").delivered_s) == (0, 9.0)


def test_a_webhook_keeps_its_place_over_restarts_until_it_is_taken_out(store: Store) -> None:
    register(store, a=ALL)
    fill(store, event(1), event(2))
    deliver(store, "a")
    register(store, a=ALL, b=ALL)
    assert (number_of(store, "a"), number_of(store, "b")) == (2, None)
    register(store, b=ALL)
    register(store, a=ALL, b=ALL)
    assert number_of(store, "a") is None


def test_failures_wait_longer_and_longer_and_success_forgets_them(store: Store) -> None:
    register(store, a=ALL)
    fill(store, event(1))
    waits = []
    for now_s in (100.0, 200.0, 300.0):
        assert fail(store, "a", now_s) == 0
        waits.append(place(store, "a").next_try_s - now_s)
    assert waits == [5.0, 10.0, 20.0]
    assert fail(store, "a", 400.0, asked_s=90.0) == 0
    assert place(store, "a").next_try_s == 490.0
    assert place(store, "a").last_error == "no"
    deliver(store, "a", 500.0)
    assert (place(store, "a").failures, place(store, "a").last_error) == (0, "")


def test_what_is_too_old_or_too_much_is_given_up_and_counted(store: Store) -> None:
    register(store, a=ALL)
    fill(store, event(1), event(2), event(3, at_s=DAY_S))
    assert fail(store, "a", 2 * DAY_S) == 0
    assert fail(store, "a", 3 * DAY_S) == 2
    assert number_of(store, "a") == 3
    fill(store, *(event(number, at_s=3 * DAY_S) for number in range(4, 9)))
    assert fail(store, "a", 3 * DAY_S) == 3
    assert number_of(store, "a") == 6
    found = place(store, "a")
    assert (found.given_up, found.pending, found.given_up_s) == (5, 3, 3 * DAY_S)


def test_waiting_has_a_limit() -> None:
    usual = Patience()
    assert [usual.wait_s(failures) for failures in (1, 2, 12, 13, 14, 10_000)] == [
        5.0, 10.0, 10_240.0, 20_480.0, 21_600.0, 21_600.0,
    ]  # fmt: skip
    assert usual.wait_s(1, asked_s=1e9) == 21_600.0


def test_only_what_nobody_waits_for_is_pruned_and_numbers_are_never_used_again(
    store: Store,
) -> None:
    register(store, a=ALL)
    fill(store, event(1), event(2), event(3, at_s=50.0))
    deliver(store, "a")
    with store.begin() as connection:
        assert outbox.prune(connection, 10.0) == 1
    assert number_of(store, "a") == 2
    deliver(store, "a")
    deliver(store, "a")
    with store.begin() as connection:
        assert outbox.prune(connection, 100.0) == 2
    fill(store, event(4))
    assert number_of(store, "a") == 4


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(st.sampled_from(["put", "taken", "lost", "failed", "restart"]), max_size=15))
def test_whatever_happens_everything_arrives_in_order(store: Store, steps: list[str]) -> None:
    """``taken``: sent and noted; ``lost``: sent, and the process ended before it was noted."""
    name = f"w{uuid.uuid4().hex[:8]}"
    register(store, **{name: ALL})
    put, got = 0, []
    for step in [*steps, *["taken"] * steps.count("put")]:
        if step == "put":
            put += 1
            fill(store, event(put))
        elif step == "restart":
            register(store, **{name: ALL})
        elif (following := number_of(store, name)) is not None:
            if step == "failed":
                fail(store, name, 1.0)
                continue
            got.append(following)
            if step == "taken":
                deliver(store, name)
    assert number_of(store, name) is None
    gone = place(store, name).given_up
    assert got == sorted(got)  # in order
    assert len(set(got)) >= put - gone  # and each at least once, but for those given up
    assert place(store, name).delivered == put - gone
