"""Opening the fleet manager's database.

Rules kept here: a database is migrated before anyone sees it, and one written by a newer Muster is
refused, not guessed at. Every change happens in a transaction that takes the write lock when it
begins (SQLite's deferred transactions fail in the middle instead of waiting) and is on the disk
when it ends (``synchronous=FULL``).
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError

from fleet.errors import ConfigError
from fleet.store.migrate import upgrade

__all__ = ["BUSY_TIMEOUT_S", "Store", "open_store"]

BUSY_TIMEOUT_S: Final = 30.0
_READ_ONLY: Final = "muster_read_only"


class Store:
    """An open database. Safe from several threads: each block takes a connection of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._engine.dialect.name

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction that may write: committed at the end, rolled back when the block raises."""
        with self._engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads: one consistent view, and it never waits for a writer."""
        with self._engine.connect() as opened:
            connection = opened.execution_options(**{_READ_ONLY: True})
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Close every pooled connection."""
        self._engine.dispose()


def open_store(url: str | Path) -> Store:
    """Open (and create or migrate) the database at ``url``: a path, or an SQLAlchemy URL.

    Raises:
        ConfigError: the URL cannot be understood, the file is no database, or a newer Muster
            wrote it.
    """
    text = f"sqlite:///{url}" if isinstance(url, Path) else url
    try:
        parsed = make_url(text)
    except ArgumentError as error:
        raise ConfigError(f"database url {text!r} cannot be understood: {error}") from error
    is_sqlite = parsed.get_backend_name() == "sqlite"
    if is_sqlite and parsed.database in {None, "", ":memory:"}:
        raise ConfigError(f"database url {text!r} names no file: use sqlite:///PATH")
    connect_args: dict[str, Any] = {"timeout": BUSY_TIMEOUT_S} if is_sqlite else {}
    engine = create_engine(parsed, connect_args=connect_args)
    if is_sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        upgrade(engine)
    except DatabaseError as error:
        engine.dispose()
        raise ConfigError(
            f"database {parsed.render_as_string()} cannot be opened: {error.orig}. "
            "Check that the path is right, writable, and a database of Muster's."
        ) from error
    except BaseException:
        engine.dispose()
        raise
    return Store(engine)


def _prepare_sqlite(dbapi_connection: sqlite3.Connection, _record: object) -> None:
    # _begin_sqlite begins transactions; the driver's own implicit BEGIN would be a deferred one.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(_READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
