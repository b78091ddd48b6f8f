"""For tests of what several threads share."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads take turns after microseconds, so that a missing lock shows."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before_s)
