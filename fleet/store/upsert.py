"""INSERT ... ON CONFLICT for both databases: spelled alike, but found in two modules."""

from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

__all__ = ["insert"]


def insert(connection: Connection, table: Table) -> Any:
    """An ``insert`` of the connection's dialect, which knows ``on_conflict_do_...``."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    return dialect.insert(table)
