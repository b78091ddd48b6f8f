"""Each device has its own time to install: from when it was heard to have begun, not from when its stage did."""

from pathlib import Path

import pytest

from fleet.monitor.record import record
from fleet.monitor.reports import Kind, ParsedReport
from fleet.rollout.preserved import snapshot_from_bytes, snapshot_to_bytes
from fleet.rollout.snapshot import Standing
from tests.support.evidence_fleet import NEW, EvidenceFleet, store_like

DEADLINE_S = 600.0


@pytest.fixture
def fleet(tmp_path: Path) -> EvidenceFleet:
    fleet = EvidenceFleet(store_like(tmp_path / "template.db", tmp_path / "home"), size=6)
    fleet.start(10_000, bake_s=7200.0, install_deadline_s=DEADLINE_S, retries=1)
    return fleet


def says(fleet: EvidenceFleet, number: int, phase: str, outcome: str = "", seq: int = 1) -> None:
    """A device reports a step of its deployment now."""
    row = {
        "device_id": fleet.ids[number], "boot_id": "b", "seq": seq, "deployment_id": f"d{number}", "rollout_id": "r1",
        "model": "digits", "bundle": "bundles/cam/digits-2", "manifest_sha256": NEW, "phase": phase,
        "outcome": outcome, "reason_code": "trial_crashed" if outcome else "", "reason": "", "attempt": 0,
        "bytes_fetched": 0, "measures": {}, "at_ms": int(fleet.now_s * 1000),
    }  # fmt: skip
    report = ParsedReport(Kind.EVENT, fleet.ids[number], "b", seq, int(row["at_ms"]), row)  # type: ignore[call-overload]
    with fleet.store.begin() as connection:
        record(connection, [report], fleet.now_s)


def standing(fleet: EvidenceFleet, number: int) -> Standing:
    """Of one device; the same when the snapshot is read back for an audit."""
    fleet.report([fleet.ids[number]], 1.0)
    snapshot = fleet.snapshot()
    again, _ = snapshot_from_bytes(snapshot_to_bytes(snapshot))
    (found,) = {
        one.standing(device)
        for one in (snapshot, again)
        for device in one.cohort
        if device.device_id == fleet.ids[number]
    }
    return found


def test_who_comes_late_has_as_long_as_who_was_there(fleet: EvidenceFleet) -> None:
    says(fleet, 0, "fetch")
    fleet.now_s += DEADLINE_S
    assert standing(fleet, 0) is Standing.UNDER_WAY
    fleet.now_s += 1
    assert standing(fleet, 0) is Standing.STUCK
    fleet.now_s += 3000  # another one was off until now, long after the stage's own time
    says(fleet, 1, "fetch")
    assert standing(fleet, 1) is Standing.UNDER_WAY
    assert standing(fleet, 2) is Standing.WAITING
    fleet.now_s += DEADLINE_S - 1
    says(fleet, 1, "try", seq=2)  # going on does not make the time longer
    assert standing(fleet, 1) is Standing.UNDER_WAY
    fleet.now_s += 2
    assert standing(fleet, 1) is Standing.STUCK
    assert standing(fleet, 0) is Standing.STUCK


def test_who_comes_late_may_try_again_as_well(fleet: EvidenceFleet) -> None:
    fleet.now_s += 3000
    says(fleet, 0, "fetch")
    says(fleet, 0, "try", "refused", seq=2)
    assert standing(fleet, 0) is Standing.WAITING
    fleet.now_s += DEADLINE_S + 1
    assert standing(fleet, 0) is Standing.REFUSED


def test_a_stage_that_begins_anew_gives_everybody_its_own_time(fleet: EvidenceFleet) -> None:
    """What a device began in an earlier run of the stage is no measure."""
    says(fleet, 0, "fetch")
    fleet.now_s += 3000
    with fleet.store.begin() as connection:
        connection.exec_driver_sql("UPDATE rollouts SET stage_started_s = ?", (fleet.now_s,))
    fleet.now_s += DEADLINE_S
    assert standing(fleet, 0) is Standing.UNDER_WAY
    fleet.now_s += 1
    assert standing(fleet, 0) is Standing.STUCK
