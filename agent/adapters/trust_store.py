"""The device's trust state in SQLite.

Rules kept here:

* One save is one transaction with ``synchronous=FULL``: after a power cut the store holds the state
  before it or the state after it, and once ``save`` has returned, the state after it. Without that,
  an old timestamp would be accepted again after a power cut.
* Only metadata that has changed is written again; flash wears out.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agent.errors import DeviceError
from agent.trust.state import TrustState

__all__ = ["SqliteTrustStore"]

_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS floors (name TEXT PRIMARY KEY, release INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clock (id INTEGER PRIMARY KEY CHECK (id = 1), floor_s REAL NOT NULL);
"""


class SqliteTrustStore:
    """Keeps one :class:`TrustState`; usable from any thread, one at a time.

    Args:
        path: the database file; made when missing, readable by its owner alone.

    Raises:
        DeviceError: the file cannot be opened or was written by a newer agent.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._failures("open"):
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > _SCHEMA_VERSION:
                self._db.close()
                raise DeviceError(
                    f"trust store {path} was written by a newer agent (format {version}); install "
                    "that agent again"
                )
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")

    def load(self) -> TrustState:
        """The state saved last, or an empty one.

        Raises:
            DeviceError: the store cannot be read.
        """
        with self._lock, self._failures("read"):
            files = dict(self._db.execute("SELECT name, content FROM files"))
            floors = dict(self._db.execute("SELECT name, release FROM floors"))
            clock = self._db.execute("SELECT floor_s FROM clock").fetchone()
        return TrustState(files, clock[0] if clock else 0.0, floors)

    def save(self, state: TrustState) -> None:
        """Make the state durable, all of it or nothing, before returning.

        Raises:
            DeviceError: the store cannot be written.
        """
        with self._lock, self._failures("write"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._replace(state)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the file; the store is of no use afterwards."""
        with self._lock:
            self._db.close()

    def _replace(self, state: TrustState) -> None:
        stored = dict(self._db.execute("SELECT name, content FROM files"))
        self._db.executemany(
            "DELETE FROM files WHERE name = ?",
            [(name,) for name in stored if name not in state.files],
        )
        self._db.executemany(
            "INSERT OR REPLACE INTO files (name, content) VALUES (?, ?)",
            [
                (name, content)
                for name, content in state.files.items()
                if stored.get(name) != content
            ],
        )
        self._db.execute("DELETE FROM floors")
        self._db.executemany(
            "INSERT INTO floors (name, release) VALUES (?, ?)",
            list(state.floors.items()),
        )
        self._db.execute(
            "INSERT OR REPLACE INTO clock (id, floor_s) VALUES (1, ?)", (state.floor_s,)
        )

    @contextmanager
    def _failures(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise DeviceError(
                f"cannot {doing} the trust store {self._path}: {error}. Check the disk; "
                "`fleet-agent doctor` says more"
            ) from error
