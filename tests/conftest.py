"""Fixtures that every test may ask for, and how Hypothesis runs.

The suite always tries the same examples and sets them no time limit: a run that was green is green again, on any
machine. ``pytest --hypothesis-profile explore`` looks for new ones.
"""

from hypothesis import HealthCheck, settings

from tests.support.mosquitto_session import mosquitto, own_mosquitto

__all__ = ["mosquitto", "own_mosquitto"]

settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    max_examples=50,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "explore",
    deadline=None,
    max_examples=1000,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")
