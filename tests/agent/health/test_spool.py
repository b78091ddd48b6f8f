"""The spool keeps what the fleet manager has not acknowledged, in memory and on disk alike."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters.spool import SqliteSpool
from agent.errors import DeviceError
from agent.health.spool import MemorySpool, SpoolLimits
from protos import report_pb2

LIMITS = SpoolLimits(max_reports=10, max_bytes=100_000, batch_reports=4, batch_bytes=10_000)


def window_report(seq, model="m", requests=1, boot="b1", role=""):
    report = report_pb2.Report(device_id="d", boot_id=boot, seq=seq)
    report.window.CopyFrom(
        report_pb2.Window(
            model=model,
            role=role,
            manifest_sha256=model * 4,
            requests=requests,
            start_unix_ms=seq * 10,
            end_unix_ms=seq * 10 + 10,
            merged=1,
        )
    )
    return report


def event_report(seq, text="r"):
    event = report_pb2.DeploymentEvent(deployment_id="x", reason=text)
    return report_pb2.Report(device_id="d", boot_id="b1", seq=seq, deployment=event)


def inventory_report(seq):
    return report_pb2.Report(
        device_id="d", boot_id="b1", seq=seq, inventory=report_pb2.Inventory(cpu_count=seq)
    )


@pytest.fixture(params=["memory", "sqlite"])
def make(request, tmp_path):
    opened = []

    def open_spool(limits=LIMITS):
        spool = (
            MemorySpool(limits)
            if request.param == "memory"
            else SqliteSpool(tmp_path / "spool.db", limits)
        )
        opened.append(spool)
        return spool

    yield open_spool
    for spool in opened:
        spool.close()


def drained(spool):
    """Everything in the spool, oldest first, acknowledging as it goes."""
    found = []
    while batch := spool.batch():
        found += batch
        spool.ack((report.boot_id, report.seq) for report in batch)
    return found


def test_a_batch_comes_again_until_it_is_acknowledged(make):
    spool = make()
    for seq in range(1, 7):
        spool.put(window_report(seq))
    assert [report.seq for report in spool.batch()] == [1, 2, 3, 4]
    assert [report.seq for report in spool.batch()] == [1, 2, 3, 4]
    assert spool.ack([("b1", 2), ("other boot", 1), ("b1", 99)]) == 1
    assert [report.seq for report in spool.batch()] == [1, 3, 4, 5]
    assert spool.ack([("b1", 2)]) == 0


def test_windows_of_two_roles_stay_two(make):
    spool = make()
    for seq in range(1, 31):
        spool.put(window_report(seq, role="arm" if seq % 2 else ""))
    found = [(report.window.role, report.window.requests) for report in drained(spool)]
    assert {
        role: sum(requests for other, requests in found if other == role) for role, _ in found
    } == {"arm": 15, "": 15}


def test_when_full_the_oldest_windows_become_one_and_no_request_is_lost(make):
    spool = make()
    for seq in range(1, 31):
        spool.put(window_report(seq, requests=seq))
    assert spool.stats().reports == 10
    assert spool.stats().merged == 20
    found = drained(spool)
    assert sum(report.window.requests for report in found) == sum(range(1, 31))
    assert [report.seq for report in found] == list(range(21, 31))
    assert found[0].window.merged == 21
    assert (found[0].window.start_unix_ms, found[0].window.end_unix_ms) == (10, 220)


def test_what_was_sent_is_not_merged(make):
    spool = make()
    for seq in range(1, 11):
        spool.put(window_report(seq))
    sent = [report.seq for report in spool.batch()]
    for seq in range(11, 21):
        spool.put(window_report(seq))
    again = spool.batch()
    assert [report.seq for report in again] == sent
    assert all(report.window.merged == 1 for report in again)
    assert sum(report.window.requests for report in drained(spool)) == 20


def test_windows_of_different_models_stay_apart(make):
    spool = make()
    for seq in range(1, 31):
        spool.put(window_report(seq, model="ab"[seq % 2]))
    totals = {"a": 0, "b": 0}
    for report in drained(spool):
        totals[report.window.model] += report.window.requests
    assert totals == {"a": 15, "b": 15}


def test_deployment_events_are_never_dropped(make):
    spool = make()
    for seq in range(1, 41):
        spool.put(event_report(seq))
        spool.put(window_report(100 + seq, model=f"m{seq}"))
    found = drained(spool)
    assert [report.seq for report in found if report.HasField("deployment")] == list(range(1, 41))


def test_what_cannot_be_merged_is_dropped_and_counted(make):
    spool = make()
    for seq in range(1, 16):
        spool.put(window_report(seq, model=f"m{seq}"))
    assert spool.stats().reports == 10
    assert spool.stats().dropped == 5


def test_only_the_newest_inventory_stays(make):
    spool = make()
    for seq in range(1, 4):
        spool.put(inventory_report(seq))
    assert [report.inventory.cpu_count for report in drained(spool)] == [3]


def test_the_size_is_bounded(make):
    spool = make(SpoolLimits(max_reports=1000, max_bytes=2000))
    for seq in range(1, 101):
        spool.put(window_report(seq))
    assert spool.stats().size_bytes <= 2000
    assert sum(report.window.requests for report in drained(spool)) == 100


def test_a_batch_is_bounded_but_never_empty(make):
    spool = make(SpoolLimits(batch_bytes=1000))
    spool.put(event_report(1, "x" * 5000))
    spool.put(event_report(2))
    assert [report.seq for report in spool.batch()] == [1]


def test_a_report_without_a_body_is_a_bug(make):
    with pytest.raises(ValueError, match="no body"):
        make().put(report_pb2.Report(boot_id="b", seq=1))


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.booleans(), st.booleans()),
        max_size=80,
    )
)
def test_no_request_is_lost_or_counted_twice(steps):
    spool = MemorySpool(SpoolLimits(max_reports=8, batch_reports=3))
    put = got = 0
    for seq, (model, requests, send, acknowledge) in enumerate(steps, start=1):
        spool.put(window_report(seq, model, requests))
        put += requests
        batch = spool.batch() if send else []
        if acknowledge:
            got += sum(report.window.requests for report in batch)
            assert spool.ack((report.boot_id, report.seq) for report in batch) == len(batch)
    got += sum(report.window.requests for report in drained(spool))
    assert got == put
    assert spool.stats().dropped == 0


def test_the_spool_on_disk_survives_a_restart(tmp_path):
    spool = SqliteSpool(tmp_path / "spool.db", LIMITS)
    for seq in range(1, 9):
        spool.put(window_report(seq))
    spool.batch()
    spool.close()
    spool = SqliteSpool(tmp_path / "spool.db", LIMITS)
    for seq in range(1, 9):
        spool.put(window_report(seq, boot="b2"))
    found = drained(spool)
    spool.close()
    # The four that were sent before the restart are the ones that were not merged.
    assert [(r.boot_id, r.seq, r.window.merged) for r in found[:4]] == [
        ("b1", n, 1) for n in range(1, 5)
    ]
    assert sum(report.window.requests for report in found) == 16


def test_a_damaged_file_is_set_aside(tmp_path):
    path = tmp_path / "spool.db"
    path.write_bytes(b"this is no database, whatever it says" * 100)
    spool = SqliteSpool(path)
    spool.put(window_report(1))
    spool.close()
    assert (tmp_path / "spool.db.damaged").read_bytes().startswith(b"this is no database")


def test_an_unreadable_report_does_not_hold_up_the_others(tmp_path):
    path = tmp_path / "spool.db"
    spool = SqliteSpool(path)
    spool.put(window_report(1))
    spool.put(window_report(2))
    spool.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE reports SET raw = x'ffffff' WHERE place = 1")
    db.close()
    spool = SqliteSpool(path)
    assert [report.seq for report in drained(spool)] == [2]
    spool.close()


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(DeviceError, match="cannot open the report spool"):
        SqliteSpool(tmp_path / "nowhere" / "spool.db")


def test_a_file_of_a_newer_agent_is_refused(tmp_path):
    path = tmp_path / "spool.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(DeviceError, match="newer agent"):
        SqliteSpool(path)
