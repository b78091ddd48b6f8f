"""Fast reports for who is compared, slow ones for the rest."""

import hashlib

from agent.health.pace import Pace, PaceLimits, in_comparison
from agent.trust import DeviceFacts, Directive, in_cohort

LIMITS = PaceLimits(window_s=60, cohort_window_s=15, settle_s=600)
SHA = hashlib.sha256(b"manifest").hexdigest()


def directive(**fields):
    given = {"percent_bp": 1000, **fields}
    return Directive(
        id="r1", number=1, model="m", bundle="bundles/cam/m-1", sha256=SHA, length=1, **given
    )


def facts(device_id, **labels):
    return DeviceFacts(device_id, "cam", "x86_64", labels)


def test_as_many_are_compared_as_are_in_the_stage():
    devices = [f"d{number}" for number in range(4000)]
    stage = {it for it in devices if in_cohort(SHA, it, 1000)}
    fast = {it for it in devices if in_comparison(directive(), facts(it))}
    assert stage < fast
    assert 0.85 < (len(fast) - len(stage)) / len(stage) < 1.15


def test_who_is_not_meant_is_not_compared():
    inside = next(f"d{n}" for n in range(1000) if in_cohort(SHA, f"d{n}", 1000))
    assert in_comparison(directive(), facts(inside))
    assert not in_comparison(directive(percent_bp=0), facts(inside))
    assert not in_comparison(directive(percent_bp=10_000), facts(inside))
    assert not in_comparison(directive(kind="rollback"), facts(inside))
    assert not in_comparison(directive(selector=(("site", "north"),)), facts(inside))
    assert in_comparison(directive(selector=(("site", "north"),)), facts(inside, site="north"))
    other = DeviceFacts(inside, "robot", "x86_64")
    assert not in_comparison(directive(), other)


def test_a_stage_is_who_answers_and_who_holds_it_beside():
    devices = [f"d{number}" for number in range(400)]
    shadow = directive(mode="shadow", percent_bp=0, beside_bp=1000)
    wide = directive(mode="ab", percent_bp=1000, beside_bp=500)
    for device in devices:
        expected = in_comparison(directive(), facts(device))
        assert in_comparison(shadow, facts(device)) is expected
        assert in_comparison(wide, facts(device)) is expected
    inside = next(it for it in devices if in_cohort(SHA, it, 1000))
    assert not in_comparison(directive(percent_bp=0, beside_bp=1000), facts(inside))


def test_who_is_left_out_or_stopped_is_not_compared():
    inside = facts(next(f"d{n}" for n in range(1000) if in_cohort(SHA, f"d{n}", 500)))
    assert not in_comparison(directive(exclude=(("hardware", "x86_64"),)), inside)
    assert not in_comparison(directive(stopped=("cam/cpu",)), inside)
    ramp = directive(ramp_s=1000, stage_started_s=1000)
    assert in_comparison(ramp, inside), "from the first moment of the stage"


def test_the_pace_follows_what_goes_on():
    pace = Pace(LIMITS, 1000)
    pace.set(busy=False, now_s=1000)
    assert pace.until_window_s(1000) == 60
    pace.set(busy=True, now_s=1020)
    assert pace.until_window_s(1020) == -5
    pace.took_window(1020)
    assert pace.until_window_s(1020) == 15
    pace.ended(1030)
    pace.set(busy=False, now_s=1030)
    assert pace.until_window_s(1030) == 5
    pace.set(busy=False, now_s=1630)
    assert pace.until_window_s(1620) == 60 - 600


def test_the_fast_window_is_never_longer_than_the_slow_one():
    pace = Pace(PaceLimits(window_s=5, cohort_window_s=15), 0)
    pace.set(busy=True, now_s=0)
    assert pace.window_s == 5
