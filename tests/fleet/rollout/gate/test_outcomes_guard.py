"""Outcomes of devices against a failure budget."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.rollout.gate.guards import InstallGuard
from fleet.rollout.gate.outcomes import OutcomesGuard
from fleet.rollout.gate.verdict import Verdict
from fleet.rollout.outcomes import kind_of_failure
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


def crashed(number: int) -> DeviceView:
    return replace(refused(number), outcome="reverted", reason_code="server_crashed")


def strict(devices: list[DeviceView], **changes: object) -> Snapshot:
    """With a failure budget of 1 %."""
    guards = replace(spec().guards, max_install_failure_rate=0.01)
    return snapshot(devices, rollout=rollout(spec=spec(guards=guards)), **changes)


@pytest.mark.parametrize(
    ("outcome", "code", "kind"),
    [
        ("refused", "trial_golden_failed", "install"),
        ("refused", "trial_crashed_device", "install"),
        ("reverted", "server_crashed", "crash"),
        ("reverted", "active_crashes", "crash"),
        ("reverted", "probation_restarts", "crash"),
        ("reverted", "probation_error_rate", "revert"),
        ("committed", "", None),
        ("cancelled", "superseded", None),
        ("", "", None),
    ],
)
def test_kinds(outcome: str, code: str, kind: str | None) -> None:
    assert kind_of_failure(outcome, code) == kind


@pytest.mark.parametrize("make", [refused, crashed])
def test_one_device_alone_never_fails_a_bundle(make: object) -> None:
    for size in (1, 2, 8, 100):
        devices = [make(0), *(good(number) for number in range(1, size))]  # type: ignore[operator]
        assert GUARD.judge(strict(devices)).verdict is Verdict.PASS


def test_two_of_a_kind_are_enough_where_one_percent_may_fail() -> None:
    finding = GUARD.judge(strict([crashed(0), crashed(1)]))
    assert finding.verdict is Verdict.FAIL
    assert "2 of 2 canary devices crashed with the bundle again and again" in finding.reason
    assert "more than the 1 % that may" in finding.reason
    assert finding.reason.endswith(": 2 reverted (server_crashed)"), "what the devices said"
    mixed = GUARD.judge(strict([crashed(0), refused(1)]))
    assert mixed.verdict is Verdict.PASS, "one of each kind"


def test_everything_fails() -> None:
    finding = GUARD.judge(snapshot([refused(number) for number in range(4)]))
    assert finding.verdict is Verdict.FAIL, "four in a row, although ten percent may"
    assert finding.evidence["kinds"]["install"]["failed"] == 4


def test_the_first_to_finish_do_not_decide() -> None:
    """A refusal takes seconds and a commit a whole probation."""
    devices = [refused(number) for number in range(8)] + [
        waiting(number) for number in range(8, 100)
    ]
    assert GUARD.judge(snapshot(devices)).verdict is Verdict.PASS


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([good, refused, crashed]), min_size=1, max_size=20), st.randoms())
def test_the_order_in_which_devices_are_listed_does_not_matter(
    makes: list[object], random: object
) -> None:
    devices = [make(number) for number, make in enumerate(makes)]  # type: ignore[operator]
    shuffled = list(devices)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert GUARD.judge(strict(devices)) == GUARD.judge(strict(shuffled))


def test_silence_of_the_cohort_alone() -> None:
    devices = [silent(number) for number in range(6)] + [good(number) for number in range(6, 20)]
    finding = GUARD.judge(snapshot(devices, control=ControlArm(180, 180, 2, served(9000))))
    assert finding.verdict is Verdict.FAIL
    assert (
        "6 of 20 canary devices are silent and 2 of 180 devices without the bundle"
        in finding.reason
    )


def test_silence_of_both_arms_blames_nobody() -> None:
    devices = [silent(number) for number in range(6)] + [good(number) for number in range(6, 20)]
    finding = GUARD.judge(snapshot(devices, control=ControlArm(180, 180, 60, served(9000))))
    assert finding.verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("failed", "size", "verdict"),
    [
        (1, 8, Verdict.PASS),
        (1, 2, Verdict.PASS),
        (1, 1, Verdict.FAIL),  # that is every device there is
        (2, 2, Verdict.FAIL),
        (2, 8, Verdict.FAIL),
    ],
)
def test_one_failed_install_of_a_few_does_not_roll_back(
    failed: int, size: int, verdict: Verdict
) -> None:
    devices = [refused(n) for n in range(failed)] + [good(n) for n in range(failed, size)]
    assert InstallGuard(0.1, 3).judge(snapshot(devices)).verdict is verdict
