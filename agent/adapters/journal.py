"""The updater's journal in SQLite.

Rules kept here:
- One file, one process; every ``save`` is one transaction with ``synchronous=FULL``, so what was saved
  is there after a power cut and half of it never is.
- The columns are the format on disk, with a version; an unknown version or word is refused, never
  guessed at.
- Refusals are bounded: the oldest are forgotten first.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from agent.health.crashes import Crash
from agent.trust.directive import MODES
from agent.update.errors import JournalError
from agent.update.journal import (
    Deployment,
    Installed,
    JournalContent,
    ModelRecord,
    Refusal,
    Slots,
)
from agent.update.states import Phase

__all__ = ["SqliteJournal"]

_VERSION: Final = 3
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS slots (
    model TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('active', 'previous')),
    manifest_sha256 TEXT NOT NULL,
    version TEXT NOT NULL,
    bundle TEXT NOT NULL,
    rollout_id TEXT NOT NULL,
    PRIMARY KEY (model, role)
) STRICT;
CREATE TABLE IF NOT EXISTS deployments (
    model TEXT PRIMARY KEY,
    id TEXT NOT NULL,
    rollout_id TEXT NOT NULL,
    bundle TEXT NOT NULL,
    manifest_sha256 TEXT NOT NULL,
    length INTEGER NOT NULL,
    started_s REAL NOT NULL,
    phase TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    boots INTEGER NOT NULL,
    previous_sha256 TEXT,
    reason_code TEXT NOT NULL,
    reason TEXT NOT NULL,
    version TEXT NOT NULL,
    replaces TEXT,
    served INTEGER NOT NULL,
    stopped INTEGER NOT NULL DEFAULT 0,
    mode TEXT NOT NULL DEFAULT 'canary',
    beside INTEGER NOT NULL DEFAULT 0,
    traffic_bp INTEGER NOT NULL DEFAULT 0,
    routing_key TEXT NOT NULL DEFAULT '',
    closed INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS crashes (
    place INTEGER PRIMARY KEY,
    model TEXT NOT NULL,
    manifest_sha256 TEXT NOT NULL,
    at_s REAL NOT NULL,
    how TEXT NOT NULL,
    share REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS loading (
    model TEXT PRIMARY KEY,
    manifest_sha256 TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS refusals (
    place INTEGER PRIMARY KEY,
    rollout_id TEXT NOT NULL,
    manifest_sha256 TEXT NOT NULL,
    reason_code TEXT NOT NULL,
    reason TEXT NOT NULL,
    count INTEGER NOT NULL DEFAULT 1,
    at_s REAL NOT NULL DEFAULT 0,
    UNIQUE (rollout_id, manifest_sha256)
) STRICT;
"""
# What brings a file of each older version up to the next; new tables come with the schema.
_UPGRADES: Final = {
    1: ("ALTER TABLE deployments ADD COLUMN stopped INTEGER NOT NULL DEFAULT 0",),
    2: (
        "ALTER TABLE deployments ADD COLUMN mode TEXT NOT NULL DEFAULT 'canary'",
        "ALTER TABLE deployments ADD COLUMN beside INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE deployments ADD COLUMN traffic_bp INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE deployments ADD COLUMN routing_key TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE deployments ADD COLUMN closed INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE refusals ADD COLUMN count INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE refusals ADD COLUMN at_s REAL NOT NULL DEFAULT 0",
    ),
}
_FLAGS: Final = ("served", "stopped", "beside", "closed")
_COLUMNS: Final = tuple(field.name for field in fields(Deployment))


class SqliteJournal:
    """Implements ``update.Journal``."""

    def __init__(self, path: Path, *, max_refusals: int = 1024) -> None:
        """Open or make the journal.

        Raises:
            JournalError: the file cannot be opened, is damaged, or is of a newer agent.
        """
        self._path = path
        self._max_refusals = max_refusals
        self._db: sqlite3.Connection | None = None
        with self._errors("opened"):
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def load(self) -> JournalContent:
        with self._errors("read"):
            slots = self._rows("SELECT * FROM slots")
            deployments = self._rows("SELECT * FROM deployments")
            refusals = self._rows("SELECT * FROM refusals ORDER BY place")
            crashes = self._rows("SELECT * FROM crashes ORDER BY place")
            loading = {
                row["model"]: row["manifest_sha256"] for row in self._rows("SELECT * FROM loading")
            }
        records: dict[str, ModelRecord] = {}
        for model in {row["model"] for row in (*slots, *deployments)}:
            held = {row["role"]: _installed(row) for row in slots if row["model"] == model}
            going = [self._deployment(row) for row in deployments if row["model"] == model]
            records[model] = ModelRecord(
                model,
                Slots(held.get("active"), held.get("previous")),
                going[0] if going else None,
                tuple(_crash(row) for row in crashes if row["model"] == model),
                loading.get(model, ""),
            )
        return JournalContent(records, tuple(_refusal(row) for row in refusals))

    def save(self, record: ModelRecord, refusal: Refusal | None = None) -> None:
        with self._errors("written"), self._transaction() as db:
            db.execute("DELETE FROM slots WHERE model = ?", (record.model,))
            for role, slot in (
                ("active", record.slots.active),
                ("previous", record.slots.previous),
            ):
                if slot is not None:
                    row = (
                        record.model,
                        role,
                        slot.manifest_sha256,
                        slot.version,
                        slot.bundle,
                        slot.rollout_id,
                    )
                    db.execute("INSERT INTO slots VALUES (?, ?, ?, ?, ?, ?)", row)
            db.execute("DELETE FROM deployments WHERE model = ?", (record.model,))
            if record.deployment is not None:
                db.execute(_INSERT_DEPLOYMENT, _row(record.deployment))
            self._keep_health(db, record)
            if refusal is not None:
                self._add(db, refusal)

    def _keep_health(self, db: sqlite3.Connection, record: ModelRecord) -> None:
        db.execute("DELETE FROM crashes WHERE model = ?", (record.model,))
        db.executemany(
            "INSERT INTO crashes (model, manifest_sha256, at_s, how, share) VALUES (?, ?, ?, ?, ?)",
            [
                (record.model, it.manifest_sha256, it.at_s, it.how, it.share)
                for it in record.crashes
            ],
        )
        db.execute("DELETE FROM loading WHERE model = ?", (record.model,))
        if record.loading:
            db.execute("INSERT INTO loading VALUES (?, ?)", (record.model, record.loading))

    def _add(self, db: sqlite3.Connection, refusal: Refusal) -> None:
        db.execute(
            "INSERT OR REPLACE INTO refusals "
            "(rollout_id, manifest_sha256, reason_code, reason, count, at_s) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (
                refusal.rollout_id,
                refusal.manifest_sha256,
                refusal.reason_code,
                refusal.reason,
                refusal.count,
                refusal.at_s,
            ),
        )
        db.execute(
            "DELETE FROM refusals WHERE place NOT IN "
            "(SELECT place FROM refusals ORDER BY place DESC LIMIT ?)",
            (self._max_refusals,),
        )

    def _prepare(self) -> None:
        with self._errors("opened"):
            db = self._open
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA cache_size=-256")
            checked = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if checked != "ok":
            raise self._damaged(str(checked))
        if version > _VERSION:
            raise JournalError(
                str(self._path),
                f"it is of format {version}, this agent knows {_VERSION}",
                "install the newer agent again, or move the file away to begin anew",
            )
        with self._errors("opened"), self._transaction() as db:
            for older in range(version or _VERSION, _VERSION):
                for statement in _UPGRADES[older]:
                    db.execute(statement)
            for statement in _SCHEMA.split(";"):  # executescript would end the transaction
                db.execute(statement)
            db.execute(f"PRAGMA user_version={_VERSION}")

    @property
    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            raise JournalError(str(self._path), "it is closed", "start the agent again")
        return self._db

    def _rows(self, query: str) -> list[Mapping[str, Any]]:
        return [dict(row) for row in self._open.execute(query).fetchall()]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = self._open
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self, done: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise self._damaged(str(error)) from error
            advice = "check the disk, its free space and its permissions"
            raise JournalError(str(self._path), f"it cannot be {done} ({error})", advice) from error

    def _damaged(self, what: str) -> JournalError:
        return JournalError(
            str(self._path),
            f"it is damaged ({what})",
            "move the file away: the agent then begins anew and fetches what the fleet wants",
        )

    def _deployment(self, row: Mapping[str, Any]) -> Deployment:
        try:
            values = {**row, "phase": Phase(row["phase"])}
            values |= {name: bool(row[name]) for name in _FLAGS}
            found = Deployment(**values)
            if found.mode not in MODES or (found.beside and found.mode == "canary"):
                raise ValueError(f"mode {found.mode!r} is not one that it could be in")
            return found
        except (TypeError, ValueError) as error:
            raise self._damaged(f"deployment of {row['model']}: {error}") from error


_INSERT_DEPLOYMENT: Final = (
    f"INSERT INTO deployments ({', '.join(_COLUMNS)}) "  # noqa: S608 (our own field names)
    f"VALUES ({', '.join('?' * len(_COLUMNS))})"
)


def _row(deployment: Deployment) -> tuple[object, ...]:
    values = {name: getattr(deployment, name) for name in _COLUMNS}
    values["phase"] = deployment.phase.value
    values |= {name: int(values[name]) for name in _FLAGS}
    return tuple(values.values())


def _installed(row: Mapping[str, Any]) -> Installed:
    return Installed(row["manifest_sha256"], row["version"], row["bundle"], row["rollout_id"])


def _crash(row: Mapping[str, Any]) -> Crash:
    return Crash(row["manifest_sha256"], row["at_s"], row["how"], row["share"])


def _refusal(row: Mapping[str, Any]) -> Refusal:
    return Refusal(
        row["rollout_id"],
        row["manifest_sha256"],
        row["reason_code"],
        row["reason"],
        row["count"],
        row["at_s"],
    )
