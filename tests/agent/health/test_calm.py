"""When memory is given back: at rest, once after each work, and not all day for a trickle of requests."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.health.calm import Calm, CalmLimits, Work, gave_back, is_due, seen

LIMITS = CalmLimits(rest_s=20, again_s=300)
STARTED = Calm(Work(0, (), False), 0.0)


def times(works, limits=LIMITS):
    """The moments at which memory is given back: one look a second, ``works`` by the second they are first seen."""
    calm, work, given = STARTED, STARTED.work, []
    for now_s in range(max(works, default=0) + 1000):
        work = works.get(now_s, work)
        calm = seen(calm, work, now_s)
        if is_due(calm, now_s, limits):
            given.append(now_s)
            calm = gave_back(calm, now_s, limits)
    return given


def test_a_start_and_then_nothing_is_one_time():
    assert times({}) == [20]


def test_rest_begins_with_the_last_that_happened():
    assert times({5: Work(1, (), False), 19: Work(2, (), False)}) == [39]


def test_not_while_something_is_under_way_however_long():
    working = Work(1, (), True)
    assert times({5: working, 400: replace(working, under_way=False)}) == [420]
    assert times({5: working}) == []


def test_after_requests_it_comes_again_but_not_soon():
    assert times({100: Work(1, (), False)}) == [20, 320]
    assert times({600: Work(1, (), False)}) == [20, 620]


def test_a_trickle_of_requests_costs_one_time_in_five_minutes():
    trickle = {second: Work(second, (), False) for second in range(30, 3000, 60)}
    given_s = times(trickle)
    assert len(given_s) <= 3000 // 300 + 1
    assert all(later - sooner >= 300 for sooner, later in pairwise(given_s))


def test_a_deployment_need_not_wait_for_what_was_given_back_before():
    assert times({25: Work(0, ("a",), False)}) == [20, 45]


def test_a_short_rest_is_looked_for_often_enough():
    assert CalmLimits.after(0.4).look_s <= 0.1
    assert CalmLimits.after(3600.0) == CalmLimits(rest_s=3600.0)


def test_asked_twice_it_answers_the_same():
    rested = seen(STARTED, STARTED.work, 20.0)
    assert is_due(rested, 20.0, LIMITS)
    assert is_due(rested, 20.0, LIMITS)
    assert not is_due(gave_back(rested, 20.0, LIMITS), 10_000.0, LIMITS)


WORKS = st.builds(Work, st.integers(0, 3), st.sampled_from([(), ("a",)]), st.booleans())


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(0, 200), WORKS, max_size=12))
def test_never_within_rest_of_anything_new(works):
    work = STARTED.work
    new_s = [0]
    for second in sorted(works):
        if works[second] != work or works[second].under_way:
            new_s.append(second)
        work = works[second]
    for given_s in times(works):
        assert given_s - max(second for second in new_s if second <= given_s) >= LIMITS.rest_s
        seen_s = [second for second in works if second <= given_s]
        assert not seen_s or not works[max(seen_s)].under_way
