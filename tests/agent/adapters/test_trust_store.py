"""The trust store: what was saved is what is loaded, whole, over restarts, crashes and damage."""

import pickle
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.adapters.trust_store import SqliteTrustStore
from agent.adapters.trust_witness import Witness, read_witness
from agent.errors import DeviceError
from agent.trust import TrustState, TrustStore

FIRST = TrustState({"1.root.json": b"r", "timestamp.json": b"1"}, 10.0, {"cam/m": 1})
SECOND = TrustState({"1.root.json": b"r", "snapshot.json": b"s"}, 20.5, {"cam/m": 2, "cam/n": 1})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trust.db"


def test_empty_at_first(path: Path) -> None:
    store: TrustStore = SqliteTrustStore(path)
    assert store.load() == TrustState()


def test_saved_is_loaded_by_the_next_process(path: Path) -> None:
    store = SqliteTrustStore(path)
    store.save(FIRST)
    store.save(SECOND)
    store.save(FIRST)
    assert store.load() == FIRST
    store.save(SECOND)
    assert store.load() == SECOND
    store.close()
    assert SqliteTrustStore(path).load() == SECOND


def test_it_waits_for_the_disk(path: Path) -> None:
    """synchronous=FULL is what makes a save survive a power cut."""
    store = SqliteTrustStore(path)
    store.load()
    assert store._db is not None
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_only_the_owner_reads_it(path: Path) -> None:
    SqliteTrustStore(path).save(FIRST)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_save_that_fails_changes_nothing(path: Path) -> None:
    store = SqliteTrustStore(path)
    store.save(FIRST)
    broken = TrustState({"timestamp.json": b"2"}, 30.0, {"cam/m": object()})  # type: ignore[dict-item]
    with pytest.raises(DeviceError, match="cannot write"):
        store.save(broken)
    assert store.load() == FIRST
    store.save(SECOND)


DIES_INSIDE_A_SAVE = """
import os, pickle, sys
from pathlib import Path
from agent.adapters.trust_store import SqliteTrustStore

path, statement, state = Path(sys.argv[1]), int(sys.argv[2]), pickle.loads(sys.stdin.buffer.read())
store = SqliteTrustStore(path)
store.load()
seen = 0

def die(_text):
    global seen
    seen += 1
    if seen > statement:
        os._exit(7)

store._db.set_trace_callback(die)
store.save(state)
"""


@pytest.mark.parametrize("statement", range(1, 9))
def test_a_crash_at_any_statement_leaves_the_state_before(path: Path, statement: int) -> None:
    """The process dies inside a save: the next one finds the state before it."""
    SqliteTrustStore(path).save(FIRST)
    died = subprocess.run(
        [sys.executable, "-c", DIES_INSIDE_A_SAVE, str(path), str(statement)],
        input=pickle.dumps(SECOND),
        check=False,
    )
    assert died.returncode == 7
    assert SqliteTrustStore(path).load() == FIRST


def test_unchanged_files_are_not_written_again(path: Path) -> None:
    store = SqliteTrustStore(path)
    store.save(FIRST)
    assert store._db is not None
    written: list[str] = []
    store._db.set_trace_callback(written.append)
    store.save(FIRST)
    assert not [text for text in written if "INTO files" in text or "DELETE FROM files" in text]


def test_from_any_thread(path: Path) -> None:
    store = SqliteTrustStore(path)
    threads = [threading.Thread(target=store.save, args=(state,)) for state in (FIRST, SECOND) * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.load() in (FIRST, SECOND)


def test_a_damaged_file_is_set_aside_and_named(path: Path) -> None:
    damaged = b"not a database, and long enough to be taken for none" * 10
    path.write_bytes(damaged)
    state = SqliteTrustStore(path).load()
    assert state == TrustState()
    assert "trust.db" in state.damage
    assert path.with_name("trust.db.damaged").read_bytes() == damaged


def test_damage_is_told_until_something_is_saved(path: Path) -> None:
    store = SqliteTrustStore(path)
    store.save(FIRST)
    store.close()
    path.write_bytes(b"")
    for _ in range(2):
        found = SqliteTrustStore(path).load()
        assert (found.floor_s, found.floors) == (FIRST.floor_s, FIRST.floors)
        assert "cut short or put back" in found.damage
    store = SqliteTrustStore(path)
    store.load()
    store.save(SECOND)
    assert store.load().damage == ""
    assert SqliteTrustStore(path).load() == SECOND


def test_an_older_copy_is_known_by_the_witness(path: Path, tmp_path: Path) -> None:
    store = SqliteTrustStore(path)
    store.save(FIRST)
    store.close()
    copy = path.read_bytes()
    store.save(SECOND)
    store.close()
    path.write_bytes(copy)
    state = SqliteTrustStore(path).load()
    assert state.damage
    assert state.files == FIRST.files
    assert (state.floor_s, dict(state.floors)) == (SECOND.floor_s, dict(SECOND.floors))


def test_a_save_without_a_load_counts_on(path: Path) -> None:
    for state in (FIRST, SECOND, FIRST):
        SqliteTrustStore(path).save(state)
    assert read_witness(path.with_name("trust.db.witness")) == Witness(3, 10.0, {"cam/m": 1})
    assert SqliteTrustStore(path).load() == FIRST


def test_a_witness_that_lags_behind_is_no_damage(path: Path) -> None:
    """The power went between the store and its witness."""
    store = SqliteTrustStore(path)
    store.save(FIRST)
    witness = path.with_name("trust.db.witness")
    before = witness.read_bytes()
    store.save(SECOND)
    witness.write_bytes(before)
    assert (found := SqliteTrustStore(path).load()) == SECOND
    assert found.damage == ""


@pytest.mark.parametrize("raw", [b"", b"{}", b"[1]", b'{"format": 1, "saves": "x"}', b"\xff"])
def test_a_damaged_witness_is_named(path: Path, raw: bytes) -> None:
    store = SqliteTrustStore(path)
    store.save(FIRST)
    path.with_name("trust.db.witness").write_bytes(raw)
    state = SqliteTrustStore(path).load()
    assert "trust.db.witness is damaged" in state.damage
    assert state == FIRST


def test_a_store_of_the_first_format_is_brought_up(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.executescript(
            "CREATE TABLE files (name TEXT PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;"
            "CREATE TABLE floors (name TEXT PRIMARY KEY, release INTEGER NOT NULL) WITHOUT ROWID;"
            "CREATE TABLE clock (id INTEGER PRIMARY KEY CHECK (id = 1), floor_s REAL NOT NULL);"
            "INSERT INTO files VALUES ('timestamp.json', x'31');"
            "INSERT INTO clock VALUES (1, 5.0); PRAGMA user_version=1;"
        )
    db.close()
    found = SqliteTrustStore(path).load()
    assert found == TrustState({"timestamp.json": b"1"}, 5.0)
    assert found.damage == ""


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot open"):
        SqliteTrustStore(tmp_path).load()


def test_a_newer_agents_store_is_not_touched(path: Path) -> None:
    SqliteTrustStore(path).save(FIRST)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=9")
    db.close()
    with pytest.raises(DeviceError, match="newer agent"):
        SqliteTrustStore(path).load()
    assert not path.with_name("trust.db.damaged").exists()
