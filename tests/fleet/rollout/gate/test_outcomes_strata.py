"""Devices that fail in some strata alone: which are stopped, and when everything goes back."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.rollout.controller import Action, Step, decide
from fleet.rollout.gate.guards import InstallGuard
from fleet.rollout.gate.outcomes import OutcomesGuard
from fleet.rollout.gate.verdict import Verdict
from fleet.rollout.snapshot import ControlArm, DeviceView, Snapshot
from tests.fleet.rollout.rollout_builders import (
    good,
    refused,
    rollout,
    served,
    silent,
    snapshot,
    spec,
    waiting,
)

GUARD = OutcomesGuard()
CPU, CUDA, NPU = "camera/cpu", "camera/cuda", "camera/npu"
Make = Callable[[int], DeviceView]


def crashed(number: int) -> DeviceView:
    return replace(refused(number), outcome="reverted", reason_code="server_crashed")


def cohort(*parts: tuple[str, int, Make]) -> list[DeviceView]:
    """So many devices of each stratum, all alike, with ids of their own."""
    devices: list[DeviceView] = []
    for stratum, count, make in parts:
        first = len(devices)
        devices += [replace(make(first + n), stratum=stratum) for n in range(count)]
    return devices


def seen(
    devices: list[DeviceView], fleet: dict[str, int] | None = None, **changes: Any
) -> Snapshot:
    """With a failure budget of 1 %, in a fleet ten times as large as the cohort."""
    guards = replace(spec().guards, max_install_failure_rate=0.01)
    of = rollout(spec=spec(guards=guards), details={"stopped": changes.pop("stopped", [])})
    counted: dict[str, int] = {}
    for device in devices:
        counted[device.stratum] = counted.get(device.stratum, 0) + 10
    strata = counted if fleet is None else fleet
    return snapshot(devices, rollout=of, strata=strata, **changes)


def decided(now: Snapshot) -> Action:
    action = decide(now)
    assert action is not None
    return action


def test_the_stratum_that_crashes_is_stopped_alone_and_says_so() -> None:
    now = seen(cohort((CUDA, 9, crashed), (CUDA, 1, good), (CPU, 31, good)))
    action = decided(now)
    assert (action.step, action.strata) == (Step.STOP_STRATUM, (CUDA,))
    assert action.reason.startswith("stopping camera/cuda in stage 1 of 3 (10 %): ")
    assert (
        "9 of 10 canary devices of camera/cuda crashed with the bundle again and again "
        "(1 % may), none of 31 others: 9 reverted (server_crashed)"
    ) in action.reason
    assert (
        "9 of 10 canary devices of camera/cuda that have begun failed (90 %; the limit is 1 %), "
        "none of 31 others"
    ) in action.reason


def test_two_strata_are_stopped_together() -> None:
    now = seen(cohort((CUDA, 10, crashed), (NPU, 10, refused), (CPU, 30, good)))
    action = decided(now)
    assert (action.step, action.strata) == (Step.STOP_STRATUM, (CUDA, NPU))


def test_all_strata_roll_back() -> None:
    now = seen(cohort((CUDA, 10, crashed), (CPU, 30, crashed)))
    assert decided(now).step is Step.ROLLBACK


def test_the_last_stratum_with_canary_devices_rolls_back() -> None:
    """Others have none yet, so nothing good is known of the bundle."""
    now = seen(cohort((CUDA, 10, crashed)), {CUDA: 90, CPU: 9})
    assert decided(now).step is Step.ROLLBACK
    now = seen(cohort((CUDA, 10, crashed)), {CUDA: 90}, stopped=[CPU])
    assert decided(now).step is Step.ROLLBACK


def test_after_the_stop_the_others_are_judged_without_it_and_go_on() -> None:
    devices = cohort((CUDA, 10, crashed), (CPU, 30, good))
    assert decided(seen(devices)).step is Step.STOP_STRATUM
    rest = [device for device in devices if device.stratum != CUDA]
    after = seen(rest, {CPU: 300}, stopped=[CUDA])
    assert decided(after).step is Step.ADVANCE
    assert GUARD.judge(after).evidence["stratum_alarm_at"] == 1600.0, "a stop keeps its share"
    last = replace(after, rollout=replace(after.rollout, stage=2))
    assert decided(last).step is Step.PROMOTE


def test_an_alarm_that_no_stratum_explains_rolls_back() -> None:
    """One device of each of many small kinds: too few in any one, too many together."""
    kinds = [f"camera/kind-{n}" for n in range(9)]
    devices = cohort((CPU, 31, good), *((kind, 1, crashed) for kind in kinds))
    finding = GUARD.judge(seen(devices))
    assert finding.verdict is Verdict.FAIL
    assert "9 of 40 canary devices crashed" in finding.reason
    assert decided(seen(devices)).step is Step.ROLLBACK


def test_an_alarm_that_is_left_without_the_alarming_stratum_rolls_back() -> None:
    kinds = [f"camera/kind-{n}" for n in range(9)]
    devices = cohort((CUDA, 10, crashed), (CPU, 9, good), *((kind, 1, crashed) for kind in kinds))
    finding = GUARD.judge(seen(devices))
    assert finding.verdict is Verdict.FAIL
    assert "19 of 28 canary devices crashed" in finding.reason


@pytest.mark.parametrize("guard", [GUARD, InstallGuard(0.01, 3)])
def test_a_fleet_of_one_stratum_or_of_small_ones_is_judged_as_a_whole(guard: Any) -> None:
    devices = cohort((CUDA, 5, crashed), (CPU, 5, good))
    plain = [replace(device, stratum="") for device in devices]
    as_before = guard.judge(seen(plain, {}))
    assert as_before.verdict is Verdict.FAIL
    assert guard.judge(seen(devices, {CUDA: 7, CPU: 7})) == as_before
    one = [replace(device, stratum=CPU) for device in devices]
    assert guard.judge(seen(one, {CPU: 700})) == as_before
    assert "strata" not in as_before.evidence


def test_a_small_part_of_a_stage_is_stopped_when_it_explains_the_alarm_over_all() -> None:
    """Below 8 canary devices a stratum has no test of its own."""
    finding = GUARD.judge(seen(cohort((CUDA, 4, crashed), (CPU, 16, good))))
    assert finding.evidence["stop_strata"] == [CUDA]


def test_one_broken_device_of_a_stratum_stops_nothing() -> None:
    now = seen(cohort((CUDA, 1, crashed), (CUDA, 9, good), (CPU, 30, good)))
    assert GUARD.judge(now).verdict is Verdict.PASS


def test_silence_of_one_stratum_stops_it_alone() -> None:
    control = ControlArm(400, 400, 2, served(9000))
    now = seen(cohort((CUDA, 10, silent), (CPU, 30, good)), control=control)
    action = decided(now)
    assert (action.step, action.strata) == (Step.STOP_STRATUM, (CUDA,)), action.reason
    assert "10 of 10 canary devices of camera/cuda fell silent" in action.reason


def test_who_has_not_begun_counts_as_good() -> None:
    devices = cohort((CUDA, 98, waiting), (CUDA, 2, crashed), (CPU, 30, good))
    finding = GUARD.judge(seen(devices))
    assert finding.verdict is Verdict.PASS
    assert finding.evidence["by_stratum"][CUDA]["devices"] == 100


MAKES = st.sampled_from([good, refused, crashed, waiting, silent])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([CPU, CUDA, NPU]), MAKES), min_size=1, max_size=30),
    st.randoms(),
)
def test_the_order_in_which_devices_are_listed_does_not_matter(
    parts: list[tuple[str, Make]], random: Any
) -> None:
    devices = cohort(*((stratum, 1, make) for stratum, make in parts))
    shuffled = list(devices)
    random.shuffle(shuffled)
    for guard in (GUARD, InstallGuard(0.01, 3)):
        assert guard.judge(seen(devices)) == guard.judge(seen(shuffled))


ALPHA, RUNS = 0.2, 400
SIZES = {CPU: 60, CUDA: 24, NPU: 12}


def harmless(rng: np.random.Generator, budget: float) -> bool:
    """Whether anything is done to a bundle of which as many fail as may, over three stages."""
    guards = replace(spec().guards, max_install_failure_rate=budget, alpha=ALPHA)
    strata = [name for name, size in SIZES.items() for _ in range(size)]
    rng.shuffle(strata)
    fails = rng.random(len(strata)) < budget
    devices = [
        replace(crashed(n) if fails[n] else good(n), stratum=strata[n]) for n in range(len(strata))
    ]
    for share in (0.25, 0.5, 1.0):
        now = snapshot(
            devices[: int(share * len(devices))], rollout=rollout(spec=spec(guards=guards)),
            strata=SIZES,
        )  # fmt: skip
        if GUARD.judge(now).verdict is not Verdict.PASS:
            return True
    return False


def test_a_bundle_that_harms_nobody_is_stopped_anywhere_in_at_most_alpha_of_rollouts() -> None:
    """One kind of four fails here, so at most alpha/4 may alarm."""
    rng = np.random.default_rng(20_240_501)
    alarms = sum(harmless(rng, 0.1) for _ in range(RUNS))
    expected = RUNS * ALPHA / 4
    assert 0 < alarms <= expected + 2 * np.sqrt(expected)
