"""When an installed bundle has crashed too often: a table."""

import pytest

from agent.health.crashes import MAX_KEPT, Crash, CrashLimits, crash_loop, with_crash

A, B = "a" * 64, "b" * 64
LIMITS = CrashLimits(window_s=100, max_crashes=2, max_crashes_alone=4)


def at(*times, digest=A, share=1.0):
    return tuple(Crash(digest, time, f"SIGSEGV at {time}", share) for time in times)


@pytest.mark.parametrize(
    ("crashes", "now", "alone", "loops"),
    [
        ((), 1000, False, False),
        (at(1000), 1000, False, False),
        (at(990, 1000), 1000, False, True),
        (at(890, 1000), 1000, False, False),  # the first is too long ago
        (at(900, 1000), 1000, False, True),  # exactly the window
        (at(990, 1000, digest=B), 1000, False, False),
        (at(990, 1000), 1000, True, False),
        (at(970, 980, 990, 1000), 1000, True, True),
        (at(990, 1000, share=0.5), 1000, False, False),
        (at(970, 980, 990, 1000, share=0.5), 1000, False, True),
        (at(*range(994, 1000), share=1 / 3), 1000, False, True),
        # The clock was set back by a power cut: what seems to lie ahead was a moment ago.
        (at(5000, 3), 4, False, True),
    ],
)
def test_a_loop_is(crashes, now, alone, loops):
    assert (crash_loop(crashes, A, now, LIMITS, alone=alone) is not None) is loops


def test_the_reason_says_how_often_and_how():
    assert crash_loop(at(1, 2), A, 3, LIMITS) == "2 crashes within 100 s; the last: SIGSEGV at 2"


def test_what_is_remembered_is_bounded():
    crashes = ()
    for time in range(100):
        crashes = with_crash(crashes, Crash(A, time, "x"))
    assert len(crashes) == MAX_KEPT
    assert crashes[-1].at_s == 99
