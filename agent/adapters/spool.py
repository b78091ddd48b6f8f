"""The spool in SQLite: what waits for an acknowledgement survives a power cut.

Rules kept here:
- One file, one process, one table; every change is one transaction with ``synchronous=FULL``.
- A damaged file is set aside (``.damaged``) and a new one begun: old telemetry must not keep a device from working.
"""

import logging
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from agent.errors import DeviceError
from agent.health.spool import RowSpool, SpoolEntry, SpoolLimits, entry_of
from protos import report_pb2

__all__ = ["SqliteSpool"]

log = logging.getLogger(__name__)

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS reports (
    place INTEGER PRIMARY KEY,
    raw   BLOB NOT NULL,
    sent  INTEGER NOT NULL DEFAULT 0
)
"""
_VERSION: Final = 1


class _SqliteRows:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = sqlite3.connect(path, isolation_level=None)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA cache_size=-256")
            found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            if found > _VERSION:
                raise DeviceError(
                    f"{path} was written by a newer agent (format {found}, this one knows {_VERSION}): "
                    f"install that version again or move the file away"
                )
            self._db.execute(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={_VERSION}")
        except BaseException:
            self._db.close()
            raise

    def entries(self) -> list[SpoolEntry]:
        found = []
        for place, raw, sent in self._db.execute(
            "SELECT place, raw, sent FROM reports ORDER BY place"
        ).fetchall():
            try:
                entry = entry_of(place, report_pb2.Report.FromString(raw))
            except (DecodeError, ValueError):
                # One unreadable report must not hold up the ones behind it.
                log.warning("dropping an unreadable report", extra={"place": place})
                self._db.execute("DELETE FROM reports WHERE place = ?", (place,))
                continue
            found.append(replace(entry, sent=bool(sent)))
        return found

    def read(self, place: int) -> bytes:
        try:
            row = self._db.execute("SELECT raw FROM reports WHERE place = ?", (place,)).fetchone()
        except sqlite3.Error as error:
            raise self._failed("read", error) from error
        if row is None:
            raise DeviceError(f"{self._path} lost a report: another process changed it")
        return bytes(row[0])

    def write(self, changes: Mapping[int, bytes | None]) -> None:
        gone = [(place,) for place, raw in changes.items() if raw is None]
        kept = [(place, raw) for place, raw in changes.items() if raw is not None]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("DELETE FROM reports WHERE place = ?", gone)
                self._db.executemany(
                    "INSERT INTO reports (place, raw) VALUES (?, ?) "
                    "ON CONFLICT (place) DO UPDATE SET raw = excluded.raw, sent = 0",
                    kept,
                )
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._failed("write", error) from error

    def mark_sent(self, places: Sequence[int]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "UPDATE reports SET sent = 1 WHERE place = ?", [(place,) for place in places]
            )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise self._failed("write", error) from error

    def close(self) -> None:
        self._db.close()

    def _failed(self, verb: str, error: sqlite3.Error) -> DeviceError:
        return DeviceError(
            f"cannot {verb} the report spool {self._path}: {error}. Check free space and the disk."
        )


class SqliteSpool(RowSpool):
    """A durable spool in one file.

    Raises:
        DeviceError: the file cannot be opened, or was written by a newer agent.
    """

    __slots__ = ()

    def __init__(self, path: Path, limits: SpoolLimits | None = None) -> None:
        try:
            rows = _SqliteRows(path)
            entries = rows.entries()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise DeviceError(
                    f"cannot open the report spool {path}: {error}. "
                    f"Check that the folder exists, is writable and has space."
                ) from error
            rows, entries = _begin_anew(path, error), []
        super().__init__(rows, limits, entries)


def _begin_anew(path: Path, error: sqlite3.DatabaseError) -> _SqliteRows:
    aside = path.with_name(path.name + ".damaged")
    log.error("the report spool is damaged (%s); set aside as %s", error, aside)
    try:
        path.replace(aside)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return _SqliteRows(path)
    except (OSError, sqlite3.Error) as second:
        raise DeviceError(f"cannot begin a new report spool at {path}: {second}") from second
