"""Worlds against a real ``fleet serve``: the agent's code, the fleet's gate, and faults that the gate must see.

Each test has a device class of its own, so one fleet manager serves them all.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.bundle import Objectives
from simulator.addresses import find_fleet
from simulator.errors import WorldError
from simulator.scenario import parse_scenario
from simulator.world import World
from tests.simulator.synthetic import publish_random
from tests.support.fleet import FleetHost

LENIENT = Objectives(
    latency_ms=50.0, max_error_rate=1.0, max_output_violation_rate=1.0, probation_s=0.5
)
SMALL = [(20.0, 0.5), (100.0, 0.5)]


def world(host: FleetHost, device_class: str, more: str = "", count: int = 30) -> World:
    scenario = parse_scenario(
        f"[devices]\ncount = {count}\nprefix = '{device_class}-'\nclass = '{device_class}'\n"
        "ramp_s = 0.5\n[run]\nwindow_s = 1\ncohort_window_s = 0.5\n[traffic]\n"
        f"requests_per_s = 50\n{more}"
    )
    return World(scenario, find_fleet(scenario.fleet, home=host.home))


async def rollout(
    host: FleetHost, bundle: str, stages: list[tuple[float, float]], state: str, **guards: Any
) -> Any:
    """Start a rollout and wait for its end, off the loop in which the devices live."""
    started = await asyncio.to_thread(host.start_rollout, bundle, stages, **guards)
    return await asyncio.to_thread(host.wait_rollout, started, state)


async def first_bundle(host: FleetHost, running: World, device_class: str, **more: Any) -> None:
    """Bring every device to 1.0.0."""
    count = running.scenario.devices.count
    await running.until(lambda: running.progress().connected == count)
    await running.until(lambda: running.progress().unacknowledged == 0)
    published = await asyncio.to_thread(
        publish_random, host, "1.0.0", device_class=device_class, **more
    )
    await rollout(host, published.path, [(100.0, 0.2)], "promoted")
    await running.until(lambda: running.serving() == {"vad 1.0.0": count})


async def second_bundle(host: FleetHost, device_class: str, **more: Any) -> str:
    published = await asyncio.to_thread(
        publish_random, host, "2.0.0", device_class=device_class, **more
    )
    return published.path


async def test_a_good_bundle_goes_through_its_stages_to_every_device(host):
    async with world(host, "good") as running:
        await first_bundle(host, running, "good")
        path = await second_bundle(host, "good")
        ended = await rollout(host, path, [(10.0, 0.5), (50.0, 0.5), (100.0, 0.5)], "promoted")
        assert ended["stage"] == 2
        assert running.serving() == {"vad 2.0.0": 30}
        await running.until(lambda: running.summary().deployments == {"committed": 60})
        await running.until(lambda: running.progress().unacknowledged == 0)
    said = running.summary()
    assert said.failed_devices == 0
    assert said.connected_peak == 30
    assert said.under_way == {}
    assert said.bytes_fetched == 30 * 2 * 300_000
    assert said.reports_unacknowledged == 0
    assert said.trust_verifications < said.trust_refreshes / 3


async def test_errors_that_each_device_forgives_are_seen_in_the_cohort(host):
    faulty = "[[model]]\nversion = '2.*'\nerror_rate = 0.4"
    async with world(host, "errors", faulty) as running:
        await first_bundle(host, running, "errors")
        path = await second_bundle(host, "errors", objectives=LENIENT)
        await rollout(host, path, SMALL, "rolled_back", max_error_rate=0.1)
        await running.until(lambda: running.serving() == {"vad 1.0.0": 30})
        assert 0 < running.summary().deployments["reverted"] < 30


@pytest.mark.parametrize(
    ("device_class", "fault", "outcome", "reason"),
    [
        ("golden", "trial = 'golden'", "refused", "trial_golden_failed"),
        ("trialcrash", "trial = 'crash'", "refused", "trial_crashed"),
        ("loadcrash", "crash_after_s = 0", "refused", ""),
        ("latecrash", "crash_after_s = 0.1", "reverted", ""),
        ("probation", "error_rate = 0.9", "reverted", "probation_error_rate"),
    ],
)
async def test_what_a_device_finds_itself_stops_the_rollout(
    host, device_class, fault, outcome, reason
):
    faulty = f"[[model]]\nversion = '2.*'\n{fault}"
    async with world(host, device_class, faulty, count=10) as running:
        await first_bundle(host, running, device_class)
        path = await second_bundle(host, device_class)
        await rollout(host, path, [(40.0, 0.5), (100.0, 0.5)], "rolled_back")
        await running.until(lambda: running.serving() == {"vad 1.0.0": 10})
        said = running.summary()
        assert set(said.deployments) == {"committed", outcome}
        assert not reason or reason in said.reasons
        assert said.failed_devices == 0


async def test_devices_that_fall_silent_are_not_taken_for_healthy_ones(host):
    faulty = "[[model]]\nversion = '2.*'\nsilent_after_commit = true"
    async with world(host, "silent", faulty) as running:
        await first_bundle(host, running, "silent")
        path = await second_bundle(host, "silent")
        await rollout(host, path, [(20.0, 60.0), (100.0, 60.0)], "rolled_back", silence_s=4.0)
        await running.until(lambda: running.serving() == {"vad 1.0.0": 30})
        assert running.summary().reports_silenced > 0


async def test_a_slow_and_broken_link_is_only_slower(host):
    network = "[network]\npiece_bytes_per_s = 300000\npiece_loss_rate = 0.2"
    async with world(host, "slow", network, count=5) as running:
        await first_bundle(host, running, "slow")
        # Four of five are enough for the gate; the last one comes through as well.
        await running.until(lambda: running.summary().deployments == {"committed": 5})
        said = running.summary()
        assert said.bytes_fetched == 5 * 300_000  # resumed, nothing fetched twice
        assert said.grpc_calls > 15


async def test_reports_that_are_lost_stay_in_the_spool(host):
    async with world(host, "lossy", "[network]\nreport_loss_rate = 1.0", count=3) as running:
        await running.until(lambda: running.summary().reports_lost >= 3)
        assert running.summary().reports_sent == 0
        assert running.progress().unacknowledged >= 3


async def test_a_cut_connection_comes_back_and_nothing_is_lost(host):
    network = "[network]\ndisconnect_per_hour = 1800\noffline_s = 0.2"
    async with world(host, "cut", network, count=5) as running:
        await running.until(lambda: running.summary().cuts >= 3)
        await running.until(lambda: running.progress().connected == 5)
        await first_bundle(host, running, "cut")


async def test_devices_say_goodbye(host):
    async with world(host, "bye", count=3) as running:
        await running.until(lambda: running.progress().unacknowledged == 0)
        await running.until(lambda: running.progress().connected == 3)
    async with asyncio.timeout(90):
        while any(host.device(f"bye-{number:04}")["online"] for number in (1, 2, 3)):
            await asyncio.sleep(0.05)


async def test_labels_are_dealt_out_and_reported(host):
    async with world(host, "labels", "[devices.labels]\nsite = ['n', 's']\n", count=8) as running:
        await running.until(lambda: running.progress().connected == 8)
        await running.until(lambda: running.progress().unacknowledged == 0)
        sites = {host.device(device)["labels"]["site"] for device in running.devices}
        assert sites == {"n", "s"}


async def test_a_fleet_manager_that_is_not_there(host, tmp_path: Path):
    access = find_fleet(parse_scenario("[fleet]\ngrpc = '127.0.0.1:1'").fleet, home=host.home)
    with pytest.raises(WorldError, match="device service"):
        async with World(parse_scenario(""), access):
            pass


async def test_a_wait_that_is_in_vain_says_how_far_the_world_is(host):
    async with world(host, "vain", count=1) as running:
        with pytest.raises(WorldError, match=r"seed 1: .* connected"):
            await running.until(lambda: False, timeout_s=0.1)
