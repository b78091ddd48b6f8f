"""Fixtures that every test may ask for, how Hypothesis runs, and which tests stay together.

With ``pytest -n`` the tests that share something dear (a running fleet manager) go to one worker, the largest groups
first; all others go to whoever is free.
Bytecode is kept, whatever the environment says: a hundred processes are started, and each would compile the same
modules anew.
The suite always tries the same examples and sets them no time limit: a run that was green is green again, on any
machine. ``pytest --hypothesis-profile explore`` looks for new ones.
"""

import os
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests.support.mosquitto_session import mosquitto, own_mosquitto
from tests.support.temporary import stay_in_memory

__all__ = ["mosquitto", "own_mosquitto"]

BY_FILE = (
    "tests/agent/serving/test_inference_protocol.py",
    "tests/agent/serving/test_protocol_conformance.py",
    "tests/agent/serving/test_rest_wire.py",
    "tests/fleet/cli/test_bundle_commands.py",
    "tests/fleet/demo/",
    "tests/simulator/test_sim_command.py",
    "tests/simulator/test_worlds_in_rollouts.py",
)
BY_FILE_AND_BROKER = "tests/system/"

stay_in_memory()
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # of the processes that the tests start

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


class SharedScheduling(LoadScopeScheduling):
    """Hands out what shares a fixture as one piece, and everything else test by test."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        if file.startswith(BY_FILE_AND_BROKER):
            return f"{file} {'mosquitto' if 'mosquitto' in test else 'embedded'}"
        return file if file.startswith(BY_FILE) else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedScheduling:
    """Called by pytest-xdist when the tests are spread over workers."""
    return SharedScheduling(config, log)
