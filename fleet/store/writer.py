"""The one thread that writes what devices report.

Rules kept here: the event loop never waits for a disk; writes happen one after another, each in its
own transaction; when ``run`` returns the change is committed.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from fleet.errors import ServerError
from fleet.store.engine import Store

__all__ = ["Writer"]

T = TypeVar("T")


class Writer:
    """Runs functions over a writing transaction, off the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-writer")

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a transaction and return its result once that is committed.

        Raises:
            ServerError: the database refused (disk full, locked, gone); nothing was changed.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, work)

    def close(self) -> None:
        """Wait for what was handed over and end the thread."""
        self._thread.shutdown(wait=True)

    def _commit(self, work: Callable[[Connection], T]) -> T:
        try:
            with self._store.begin() as connection:
                return work(connection)
        except SQLAlchemyError as error:
            raise ServerError(f"the database refused a change: {error}") from error
