"""The journal in SQLite: what was saved comes back, and a file that is not a journal is refused."""

import multiprocessing
import os
import signal
import sqlite3
from dataclasses import replace

import pytest

from agent.adapters.journal import SqliteJournal
from agent.health.crashes import Crash
from agent.update import (
    Deployment,
    Installed,
    JournalContent,
    JournalError,
    ModelRecord,
    Phase,
    Refusal,
    Slots,
)

A, B, C = "a" * 64, "b" * 64, "c" * 64
ACTIVE = Installed(A, "1", "bundles/pi/m-1", "r1")
PREVIOUS = Installed(B, "0", "bundles/pi/m-0", "r0")
GOING = Deployment(
    id="d", rollout_id="r2", model="m", bundle="bundles/pi/m-2", manifest_sha256=C, length=9,
    started_s=1.5, phase=Phase.PROBATION, attempt=2, boots=1, previous_sha256=A,
    reason_code="code", reason="why ✓", version="2", replaces=B, served=True,
)  # fmt: skip
REFUSAL = Refusal("r2", C, "trial_memory", "too much")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.db"


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize(
    "slots", [Slots(), Slots(ACTIVE), Slots(ACTIVE, PREVIOUS), Slots(None, PREVIOUS)]
)
def test_what_was_saved_comes_back(path, phase, slots):
    record = ModelRecord("m", slots, replace(GOING, phase=phase))
    journal = SqliteJournal(path)
    journal.save(record, REFUSAL)
    journal.close()
    assert SqliteJournal(path).load() == JournalContent({"m": record}, (REFUSAL,))


def test_records_are_replaced_as_a_whole_and_apart_from_each_other(path):
    journal = SqliteJournal(path)
    other = ModelRecord("n", Slots(PREVIOUS))
    journal.save(other)
    journal.save(ModelRecord("m", Slots(ACTIVE, PREVIOUS), GOING))
    bare = ModelRecord("m", Slots(ACTIVE), None)
    journal.save(bare)
    assert journal.load().models == {"m": bare, "n": other}


def test_none_stays_none(path):
    journal = SqliteJournal(path)
    record = ModelRecord("m", Slots(), replace(GOING, previous_sha256=None, replaces=None))
    journal.save(record)
    assert journal.load().models["m"] == record


def test_refusals_are_bounded_and_the_same_one_counts_once(path):
    journal = SqliteJournal(path, max_refusals=3)
    record = ModelRecord("m", Slots(ACTIVE))
    for n in range(5):
        journal.save(record, replace(REFUSAL, rollout_id=f"r{n}"))
        journal.save(record, replace(REFUSAL, rollout_id=f"r{n}", reason="again"))
    assert [(r.rollout_id, r.reason) for r in journal.load().refusals] == [
        (f"r{n}", "again") for n in (2, 3, 4)
    ]


def test_a_save_that_fails_half_way_changes_nothing(path):
    journal = SqliteJournal(path)
    before = ModelRecord("m", Slots(ACTIVE), None)
    journal.save(before)
    broken = ModelRecord("m", Slots(PREVIOUS), replace(GOING, bundle=None))
    with pytest.raises(JournalError, match="cannot be written"):
        journal.save(broken, REFUSAL)
    assert journal.load() == JournalContent({"m": before}, ())
    journal.save(ModelRecord("m", Slots(PREVIOUS)))


def test_it_waits_for_the_disk(path):
    journal = SqliteJournal(path)
    assert journal._open.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
    assert journal._open.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


@pytest.mark.parametrize("content", [b"not a database at all" * 100, os.urandom(8192)])
def test_a_file_that_is_no_journal_is_refused_with_advice(path, content):
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"it is damaged .*move the file away"):
        SqliteJournal(path)


def test_damage_inside_is_refused(path):
    journal = SqliteJournal(path)
    for n in range(200):
        journal.save(ModelRecord(f"m{n}", Slots(ACTIVE, PREVIOUS), replace(GOING, model=f"m{n}")))
    journal.close()
    raw = bytearray(path.read_bytes())
    for page in range(2, len(raw) // 4096):
        raw[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(raw)
    with pytest.raises(JournalError, match="it is damaged"):
        SqliteJournal(path)


def test_a_newer_format_is_refused(path):
    SqliteJournal(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=9")
    with pytest.raises(JournalError, match="format 9, this agent knows 3"):
        SqliteJournal(path)


def test_an_unknown_phase_is_refused(path):
    journal = SqliteJournal(path)
    journal.save(ModelRecord("m", Slots(), GOING))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE deployments SET phase = 'dance'")
    with pytest.raises(JournalError, match="deployment of m"):
        journal.load()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(JournalError, match=r"cannot be opened .*check the disk"):
        SqliteJournal(tmp_path / "no" / "journal.db")


def test_a_closed_journal_says_so(path):
    journal = SqliteJournal(path)
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="it is closed"):
        journal.load()


def _save_for_ever(path, pipe):
    journal = SqliteJournal(path)
    n = 0
    while True:
        n += 1
        deployment = replace(GOING, attempt=n)
        slots = Slots(replace(ACTIVE, rollout_id=f"r{n}"), PREVIOUS)
        journal.save(ModelRecord("m", slots, deployment), replace(REFUSAL, rollout_id=f"r{n}"))
        pipe.send(n)


def test_a_killed_process_loses_nothing_it_was_told_is_saved(path):
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_save_for_ever, args=(path, there)
    )
    process.start()
    there.close()
    last = 0
    while last < 20:
        assert here.poll(30), "the writer does not write"
        last = here.recv()
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    while here.poll(0):
        try:
            last = here.recv()
        except EOFError:
            break
    content = SqliteJournal(path).load()
    attempt = content.models["m"].deployment.attempt
    assert attempt in (last, last + 1)
    assert content.models["m"].slots.active.rollout_id == f"r{attempt}"
    assert content.refusals[-1].rollout_id == f"r{attempt}"


def test_what_is_held_beside_and_tries_come_back(path):
    beside = replace(GOING, phase=Phase.BESIDE, mode="ab", beside=True, traffic_bp=2500,
                     routing_key="user", closed=True)  # fmt: skip
    record = ModelRecord("m", Slots(ACTIVE), beside)
    refusal = replace(REFUSAL, count=3, at_s=12.5)
    journal = SqliteJournal(path)
    journal.save(record, REFUSAL)
    journal.save(record, refusal)
    journal.close()
    assert SqliteJournal(path).load() == JournalContent({"m": record}, (refusal,))


@pytest.mark.parametrize("mode", ["canary", "nonsense"])
def test_a_mode_in_which_nothing_is_held_beside_is_refused(path, mode):
    journal = SqliteJournal(path)
    journal.save(ModelRecord("m", Slots(ACTIVE), replace(GOING, beside=True, mode=mode)))
    with pytest.raises(JournalError, match="deployment of m: mode"):
        journal.load()


def test_crashes_loads_and_orderly_stops_come_back(path):
    journal = SqliteJournal(path)
    crashes = (Crash(A, 1.5, "killed by SIGSEGV", 0.5), Crash(B, 2.5, "power"))
    record = ModelRecord("m", Slots(ACTIVE, PREVIOUS), replace(GOING, stopped=True), crashes, A)
    other = ModelRecord("n", Slots(PREVIOUS), None, (Crash(B, 9.0, "x"),))
    journal.save(other)
    journal.save(record)
    journal.save(record)
    journal.close()
    assert SqliteJournal(path).load().models == {"m": record, "n": other}
    bare = replace(record, crashes=(), loading="", deployment=None)
    SqliteJournal(path).save(bare)
    assert SqliteJournal(path).load().models == {"m": bare, "n": other}


TO_SECOND = (
    *(f"ALTER TABLE deployments DROP COLUMN {it}" for it in
      ("mode", "beside", "traffic_bp", "routing_key", "closed")),
    "ALTER TABLE refusals DROP COLUMN count",
    "ALTER TABLE refusals DROP COLUMN at_s",
    "PRAGMA user_version=2",
)  # fmt: skip
TO_FIRST = (
    *TO_SECOND,
    "ALTER TABLE deployments DROP COLUMN stopped",
    "DROP TABLE crashes",
    "DROP TABLE loading",
    "PRAGMA user_version=1",
)


@pytest.mark.parametrize("back", [TO_FIRST, TO_SECOND], ids=["first", "second"])
def test_a_journal_of_an_older_format_is_brought_up(path, back):
    record = ModelRecord("m", Slots(ACTIVE, PREVIOUS), GOING)
    journal = SqliteJournal(path)
    journal.save(record, REFUSAL)
    journal.close()
    with sqlite3.connect(path) as db:
        for statement in back:
            db.execute(statement)
    db.close()
    for _ in range(2):
        journal = SqliteJournal(path)
        assert journal.load() == JournalContent({"m": record}, (REFUSAL,))
        journal.close()
