"""The audit log in the database, and its head in a file beside it.

Rules kept here: an entry is written in the caller's transaction, so that it is there if and only if the change is;
the head in the file only goes forward along the chain, and is left as it is where the chain does not lead to it, so
that a log which was cut stays found out. The file may be behind (a process that ended between the two), never ahead.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, insert, select

from fleet.errors import RefusedError, RequestError, ServerError
from fleet.operators.chain import START, Entry, Head, check_chain, follows, parse_head
from fleet.repository.files import write_durable
from fleet.store.tables import audit_log

__all__ = ["append", "entries_after", "head_of", "keep_head", "newest", "read_head", "verify"]

_LOG = logging.getLogger(__name__)
_PAGE: Final = 1000
_MAX_HEAD_BYTES: Final = 4096


def append(connection: Connection, entry: Entry) -> Entry:
    """Write an entry as the newest one, in a transaction that may write (so nobody else adds one meanwhile)."""
    placed = follows(head_of(connection), entry)
    connection.execute(insert(audit_log).values(placed.to_json()))
    return placed


def head_of(connection: Connection) -> Head:
    """The newest entry in the database."""
    query = select(audit_log.c.number, audit_log.c.sha256).order_by(audit_log.c.number.desc())
    row = connection.execute(query.limit(1)).first()
    return START if row is None else Head(row.number, row.sha256)


def newest(connection: Connection, limit: int, before: int = 0) -> list[Entry]:
    """Entries, the newest first; ``before`` is the number of an entry to page on from."""
    query = select(audit_log).order_by(audit_log.c.number.desc()).limit(limit)
    if before > 0:
        query = query.where(audit_log.c.number < before)
    return [Entry(**row._mapping) for row in connection.execute(query)]


def entries_after(connection: Connection, number: int = 0) -> Iterator[Entry]:
    """Every entry behind this number, the oldest first."""
    while True:
        query = select(audit_log).where(audit_log.c.number > number)
        rows = connection.execute(query.order_by(audit_log.c.number).limit(_PAGE)).all()
        yield from (Entry(**row._mapping) for row in rows)
        if len(rows) < _PAGE:
            return
        number = rows[-1].number


def verify(connection: Connection, *expected: Head) -> Head:
    """The head of the log, when every entry is as it was written and lies before the ``expected`` ones.

    Raises:
        RefusedError: names the first entry that is not.
    """
    return check_chain(entries_after(connection), expected)


def read_head(path: Path) -> Head:
    """The head in the file; ``START`` where there is no file.

    Raises:
        ServerError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            said = json.loads(stream.read(_MAX_HEAD_BYTES))
        return parse_head(f"{said['number']}:{said['sha256']}")
    except FileNotFoundError:
        return START
    except (OSError, ValueError, KeyError, TypeError, RequestError) as error:
        raise ServerError(
            f"{path}, which has the head of the audit log, cannot be read ({error}): see what became of it, run "
            "`fleet audit verify`, and remove the file if the log is whole"
        ) from error


def keep_head(connection: Connection, path: Path) -> Head:
    """Bring the file up to the database; the head that is kept afterwards.

    Raises:
        RefusedError: the chain does not lead to what the file has, which stays as it is.
        ServerError: the file cannot be read or written.
    """
    kept, newer = read_head(path), head_of(connection)
    if kept == newer:
        return kept
    query = select(audit_log.c.sha256).where(audit_log.c.number == kept.number)
    found = connection.scalar(query)
    if kept.number > 0 and found != kept.sha256:
        what = "was cut off" if found is None else "was written anew"
        raise RefusedError(
            f"entry {kept.number} of the audit log {what}: {path} has its digest. Restore the database from its "
            "backup; `fleet audit verify` says the same until then"
        )
    body = {"number": newer.number, "sha256": newer.sha256}
    write_durable(path, (json.dumps(body) + "\n").encode(), mode=0o600)
    _LOG.info("audit log: head %s", newer)
    return newer
