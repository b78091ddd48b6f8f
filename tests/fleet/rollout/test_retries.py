"""A device that may try a bundle again counts as failed when its tries are used up."""

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from fleet.rollout.controller import Step, decide
from fleet.rollout.snapshot import DeviceView, Snapshot, Standing
from fleet.store.tables import deployment_events, deployments
from tests.fleet.rollout.rollout_builders import (
    NOW_S,
    STARTED_S,
    good,
    refused,
    rollout,
    snapshot,
    spec,
)
from tests.support.evidence_fleet import NEW, EvidenceFleet, store_like


def crashed(number: int, tries: int = 1) -> DeviceView:
    return replace(refused(number), outcome="reverted", reason_code="server_crashed", tries=tries)


def seen(devices: list[DeviceView], retries: int = 1, deadline_s: float = 600.0) -> Snapshot:
    asked = spec(retries=retries, install_deadline_s=deadline_s)
    return snapshot(devices, rollout=rollout(spec=asked))


@pytest.mark.parametrize(
    ("device", "retries", "deadline_s", "standing"),
    [
        (crashed(0, tries=1), 1, 600.0, Standing.WAITING),
        (crashed(0, tries=2), 1, 600.0, Standing.REVERTED),
        (crashed(0, tries=2), 2, 600.0, Standing.WAITING),
        (crashed(0, tries=1), 0, 600.0, Standing.REVERTED),
        (crashed(0, tries=0), 1, 600.0, Standing.REVERTED),  # kept before tries were counted
        (crashed(0, tries=1), 1, NOW_S - STARTED_S - 1, Standing.REVERTED),  # no time is left
        (replace(crashed(0), last_heard_s=NOW_S - 500), 1, 600.0, Standing.REVERTED),
        (replace(refused(0), tries=1), 1, 600.0, Standing.WAITING),
    ],
)
def test_standing(device: DeviceView, retries: int, deadline_s: float, standing: Standing) -> None:
    assert seen([device], retries, deadline_s).standing(device) is standing


def test_the_stage_waits_for_the_last_try() -> None:
    fine = [good(number) for number in range(5, 15)]
    waits = decide(seen([*(crashed(n, 1) for n in range(5)), *fine]))
    assert waits is not None
    assert waits.step is Step.HOLD
    over = decide(seen([*(crashed(n, 2) for n in range(5)), *fine]))
    assert over is not None
    assert over.step is Step.ROLLBACK
    assert "5 reverted (server_crashed)" in over.reason


@pytest.mark.parametrize(("retries", "failed"), [(0, 2), (1, 1), (2, 0)])
def test_tries_are_counted_from_what_devices_reported(
    retries: int, failed: int, tmp_path: Path
) -> None:
    fleet = EvidenceFleet(store_like(tmp_path / "template.db", tmp_path / "home"), size=12)
    fleet.start(10_000, bake_s=60.0, retries=retries)
    fleet.tick()
    fleet.install()
    once, twice = fleet.ids[:2]
    ended = [(once, "a"), (once, "a"), (twice, "a"), (twice, "b")]  # a report may come twice
    plain = {"rollout_id": "r1", "model": "digits", "bundle": "", "manifest_sha256": NEW}
    rest = {"phase": "revert", "reason_code": "server_crashed", "reason": "", "at_ms": 0}
    with fleet.store.begin() as connection:
        for number, (device_id, deployment) in enumerate(ended):
            row = {"device_id": device_id, "boot_id": "b", "seq": number, "received_s": 0.0}
            row |= {"deployment_id": deployment, "outcome": "reverted", **plain, **rest}
            connection.execute(insert(deployment_events).values(**row))
        step = update(deployments).where(deployments.c.device_id.in_([once, twice]))
        connection.execute(step.values(outcome="reverted", reason_code="server_crashed"))
    tally = fleet.snapshot().tally()
    assert (tally.failed, tally.of(Standing.WAITING)) == (failed, 2 - failed)
