"""Rollouts, devices and snapshots in a line, for the tests of this folder."""

from dataclasses import replace
from typing import Any

from fleet.rollout.record import Rollout
from fleet.rollout.snapshot import ControlArm, DeviceView, Served, Snapshot
from fleet.rollout.spec import Guards, RolloutSpec, Stage, Statistics
from fleet.rollout.states import State

SHA = "ab" * 32
BUNDLE = "bundles/cam/digits-2"
STARTED_S = 1_000.0
NOW_S = 1_100.0  # 100 s later
STAGES = (Stage(1000, 60.0), Stage(5000, 60.0), Stage(10_000, 60.0))


def spec(**changes: Any) -> RolloutSpec:
    guards = Guards(
        max_install_failure_rate=0.1,
        min_installs=5,
        max_error_rate=0.05,
        max_over_latency_rate=0.2,
        max_output_violation_rate=0.05,
        min_requests=100,
        min_devices=2,
        silence_s=30.0,
        statistics=Statistics.OFF,  # the absolute guards alone
    )
    values: dict[str, Any] = {"model": "digits", "bundle": BUNDLE, "stages": STAGES}
    values |= {"guards": guards, "install_deadline_s": 600.0}
    return RolloutSpec(**{**values, **changes})


def rollout(number: int = 2, **changes: Any) -> Rollout:
    values: dict[str, Any] = {
        "id": f"r{number}",
        "number": number,
        "model": "digits",
        "bundle": BUNDLE,
        "manifest_sha256": SHA,
        "previous_bundle": "bundles/cam/digits-1",
        "spec": spec(),
        "state": State.RUNNING,
        "stage": 0,
        "stage_started_s": STARTED_S,
        "reason": "",
        "created_s": STARTED_S,
        "updated_s": STARTED_S,
    }
    return Rollout(**{**values, **changes})


def good(number: int, **changes: Any) -> DeviceView:
    """A device that committed, serves without a fault and has just reported."""
    view = DeviceView(
        device_id=f"cam-{number}",
        last_heard_s=NOW_S - 1,
        phase="idle",
        outcome="committed",
        committed_s=STARTED_S + 10,
        serves=True,
        served=Served(requests=100, last_window_s=NOW_S - 1),
    )
    return replace(view, **changes)


def served(requests: int = 100, **changes: Any) -> Served:
    return replace(Served(requests=requests, last_window_s=NOW_S - 1), **changes)


def refused(number: int, code: str = "trial_golden_failed") -> DeviceView:
    return good(
        number, outcome="refused", committed_s=None, serves=False, served=Served(), reason_code=code
    )


def waiting(number: int) -> DeviceView:
    return DeviceView(f"cam-{number}", NOW_S - 1)


def silent(number: int) -> DeviceView:
    return good(number, last_heard_s=NOW_S - 50, served=served(last_window_s=NOW_S - 50))


def offline(number: int) -> DeviceView:
    return DeviceView(f"cam-{number}", NOW_S - 500)


def snapshot(cohort: list[DeviceView], **changes: Any) -> Snapshot:
    values: dict[str, Any] = {
        "rollout": rollout(),
        "cohort": tuple(cohort),
        "control": ControlArm(90, 90, 0, served(9000)),
        "now_s": NOW_S,
    }
    return Snapshot(**{**values, **changes})
