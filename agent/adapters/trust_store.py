"""The device's trust state in SQLite.

Rules kept here:

* One save is one transaction with ``synchronous=FULL``: after a power cut the store holds the state
  before it or the state after it, and once ``save`` has returned, the state after it. Without that,
  an old timestamp would be accepted again after a power cut.
* Only metadata that has changed is written again; flash wears out.
* A store that is damaged, cut short or an older copy is not believed (``TrustState.damage`` says why): what its
  witness remembers counts, a file that cannot be read is set aside, and the next save makes the store whole. A disk
  that fails is another matter: that is an error, and nothing is thrown away.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from agent.adapters.durable import disk_errors, fsync_folder
from agent.adapters.trust_witness import Witness, read_witness, write_witness
from agent.errors import DeviceError
from agent.trust.state import TrustState

__all__ = ["SqliteTrustStore"]

_SCHEMA_VERSION: Final = 2
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS floors (name TEXT PRIMARY KEY, release INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clock (id INTEGER PRIMARY KEY CHECK (id = 1), floor_s REAL NOT NULL);
CREATE TABLE IF NOT EXISTS saves (id INTEGER PRIMARY KEY CHECK (id = 1), number INTEGER NOT NULL);
"""
_DAMAGE_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class _DamagedError(DeviceError):
    """What is in the file is no trust store (any more)."""


class SqliteTrustStore:
    """Keeps one :class:`TrustState`; usable from any thread, one at a time. Opened by the first ``load`` or ``save``.

    Args:
        path: the database file; made when missing, readable by its owner alone. Its witness lies beside it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._witness_path = path.with_name(f"{path.name}.witness")
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._saves = 0

    def load(self) -> TrustState:
        """The state saved last, or an empty one; with ``damage`` when it is not the one saved last.

        Raises:
            DeviceError: the store cannot be read, or was written by a newer agent.
        """
        with self._lock:
            witness, damage = self._witness()
            try:
                state, saves = self._read(self._opened())
            except _DamagedError as error:
                damage = str(error)
                self._set_aside()
                state, saves = self._read(self._opened())
            if not damage and saves < witness.saves:
                damage = (
                    f"trust store {self._path} was cut short or put back from an older copy: it was saved "
                    f"{saves} times, its witness has seen {witness.saves}"
                )
            self._saves = max(saves, witness.saves)
            return _remembering(state, witness, damage)

    def save(self, state: TrustState) -> None:
        """Make the state durable, all of it or nothing, before returning.

        Raises:
            DeviceError: the store cannot be written.
        """
        with self._lock:
            db = self._opened()
            if self._saves == 0:
                self._saves = max(self._read(db)[1], self._witness()[0].saves)
            with self._failures("write"):
                db.execute("BEGIN IMMEDIATE")
                try:
                    self._replace(db, state)
                    db.execute("COMMIT")
                except BaseException:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    raise
            self._saves += 1
            witness = Witness(self._saves, state.floor_s, dict(state.floors))
            write_witness(self._witness_path, witness)

    def close(self) -> None:
        """Close the file; the next ``load`` or ``save`` opens it again."""
        with self._lock:
            self._close()

    # --- inside -----------------------------------------------------------------------------------

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _witness(self) -> tuple[Witness, str]:
        try:
            return read_witness(self._witness_path) or Witness(), ""
        except DeviceError as error:
            return Witness(), str(error)

    def _opened(self) -> sqlite3.Connection:
        if self._db is not None:
            return self._db
        try:
            with self._failures("open"):
                self._path.touch(mode=0o600)
                self._db = sqlite3.connect(
                    self._path, isolation_level=None, check_same_thread=False
                )
                self._prepare(self._db)
        except BaseException:
            self._close()
            raise
        return self._db

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise DeviceError(
                f"trust store {self._path} was written by a newer agent (format {version}); install "
                "that agent again"
            )
        found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise _DamagedError(f"trust store {self._path} is damaged: {found}")
        if version < _SCHEMA_VERSION:
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_SCHEMA_VERSION}; COMMIT;")

    def _read(self, db: sqlite3.Connection) -> tuple[TrustState, int]:
        with self._failures("read"):
            files = dict(db.execute("SELECT name, content FROM files"))
            floors = dict(db.execute("SELECT name, release FROM floors"))
            clock = db.execute("SELECT floor_s FROM clock").fetchone()
            saves = db.execute("SELECT number FROM saves").fetchone()
        return TrustState(files, clock[0] if clock else 0.0, floors), saves[0] if saves else 0

    def _set_aside(self) -> None:
        """Keep the damaged file for whoever looks into it, and begin anew. Raises DeviceError."""
        self._close()
        with disk_errors("set aside", self._path):
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            self._path.replace(self._path.with_name(f"{self._path.name}.damaged"))
            fsync_folder(self._path.parent)

    def _replace(self, db: sqlite3.Connection, state: TrustState) -> None:
        stored = dict(db.execute("SELECT name, content FROM files"))
        db.executemany(
            "DELETE FROM files WHERE name = ?",
            [(name,) for name in stored if name not in state.files],
        )
        db.executemany(
            "INSERT OR REPLACE INTO files (name, content) VALUES (?, ?)",
            [
                (name, content)
                for name, content in state.files.items()
                if stored.get(name) != content
            ],
        )
        db.execute("DELETE FROM floors")
        db.executemany(
            "INSERT INTO floors (name, release) VALUES (?, ?)",
            list(state.floors.items()),
        )
        db.execute("INSERT OR REPLACE INTO clock (id, floor_s) VALUES (1, ?)", (state.floor_s,))
        db.execute("INSERT OR REPLACE INTO saves (id, number) VALUES (1, ?)", (self._saves + 1,))

    @contextmanager
    def _failures(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            kind = _DamagedError if code in _DAMAGE_CODES else DeviceError
            raise kind(
                f"cannot {doing} the trust store {self._path}: {error}. Check the disk; "
                "`fleet-agent doctor` says more"
            ) from error


def _remembering(state: TrustState, witness: Witness, damage: str) -> TrustState:
    """The state with floors no lower than its witness's."""
    if not damage:
        return state
    floors = dict(state.floors)
    for name, release in witness.floors.items():
        floors[name] = max(release, floors.get(name, 0))
    return replace(state, floor_s=max(state.floor_s, witness.floor_s), floors=floors, damage=damage)
