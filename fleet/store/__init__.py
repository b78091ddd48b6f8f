"""The fleet manager's database: tables, migrations, and the one way to open it."""

from fleet.store.engine import Store, open_store

__all__ = ["Store", "open_store"]
