"""Pauses grow, are capped, and never leave their bounds."""

from hypothesis import given
from hypothesis import strategies as st

from agent.delivery import backoff_s


@given(st.integers(-5, 10**6), st.floats(0.001, 100), st.floats(0.001, 10**5), st.floats(-1, 2))
def test_between_half_the_ceiling_and_the_ceiling(failures, base_s, max_s, jitter):
    pause = backoff_s(failures, base_s, max_s, jitter)
    ceiling = min(max_s, base_s * 2.0 ** min(max(failures - 1, 0), 32))
    assert ceiling / 2 <= pause <= ceiling


def test_it_doubles_up_to_the_cap():
    assert [backoff_s(n, 1.0, 10.0, 1.0) for n in range(1, 7)] == [1, 2, 4, 8, 10, 10]
