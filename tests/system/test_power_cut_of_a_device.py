"""kill -9 of the agent around every write of the journal: it converges, and serves only what was verified.

Each row names a phase of the updater and on which side of its durable write the power goes. What a broker does is the
same for all of them, so the journal's beginning and end are seen with each broker and the rest with one.
"""

import itertools
import re
import sys
from collections.abc import Callable

import pytest

from tests.support.bundles import tiny_project
from tests.support.fleet import AGENT, Device, FleetHost
from tests.system.conftest import embedded_only

KILLED_AGENT = (sys.executable, "-m", "tests.support.killed_agent")
PHASES = ("fetch", "verify", "try", "swap", "probation", "commit", "idle")
WITH_EACH_BROKER = [("after", "fetch"), ("before", "commit")]
CUTS = [
    cut for cut in itertools.product(("before", "after"), PHASES) if cut not in WITH_EACH_BROKER
]


@embedded_only
@pytest.mark.parametrize(("when", "phase"), CUTS)
def test_agent_killed_while_it_updates_converges(
    when: str, phase: str, fleet_host: FleetHost, new_device: Callable[..., Device]
) -> None:
    cut_and_converge(when, phase, fleet_host, new_device)


@pytest.mark.parametrize(("when", "phase"), WITH_EACH_BROKER)
def test_agent_killed_while_it_updates_converges_with_each_broker(
    when: str, phase: str, fleet_host: FleetHost, new_device: Callable[..., Device]
) -> None:
    cut_and_converge(when, phase, fleet_host, new_device)


def cut_and_converge(
    when: str, phase: str, fleet_host: FleetHost, new_device: Callable[..., Device]
) -> None:
    device = new_device(f"cut-{when}-{phase}")
    device.start(KILLED_AGENT, {"MUSTER_TEST_KILL": f"{when}:{phase}"})
    assert device.daemon.wait_dead() == -9, device.daemon.tail()

    device.start(AGENT)
    device.wait_serving("tiny", "1.0.0")

    fleet_host.wait_outcome(device.id, "committed")
    served = fleet_host.device(device.id)["models"]
    assert [(row["model"], row["version"]) for row in served] == [("tiny", "1.0.0")]


@pytest.mark.parametrize("when", ["before", "after"])
def test_agent_killed_while_it_reverts_converges(
    when: str,
    fleet_host: FleetHost,
    new_device: Callable[..., Device],
) -> None:
    device = new_device(f"cut-{when}-revert")
    device.start(KILLED_AGENT, {"MUSTER_TEST_KILL": f"{when}:revert"})
    device.wait_serving("tiny", "1.0.0")
    version = f"9.{['before', 'after'].index(when)}.0"
    path = fleet_host.publish(tiny_project(device.folder, version, probation_s=600.0))
    rollout = fleet_host.start_rollout(
        path, [(100, 600)], device=device.id, max_install_failure_rate=0.99
    )
    device.wait_serving("tiny", version)

    fleet_host.post(f"/v1/rollouts/{rollout}/rollback", {"reason": "test"})
    assert device.daemon.wait_dead() == -9, device.daemon.tail()

    device.start(AGENT)
    device.wait_serving("tiny", "1.0.0")
    fleet_host.wait_outcome(device.id, "reverted", rollout)
    assert not re.search(r"Traceback", device.daemon.tail(200))
