"""INSERT ... ON CONFLICT for both databases: spelled alike, but found in two modules, of which one is imported."""

from typing import Any

from sqlalchemy import Connection, Table

__all__ = ["insert"]


def insert(connection: Connection, table: Table) -> Any:
    """An ``insert`` of the connection's dialect, which knows ``on_conflict_do_...``."""
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)
