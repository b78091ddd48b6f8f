"""Tokens and the audit log for who works on the fleet folder itself, with or without a running fleet manager.

Rules kept here: who may write the folder may do everything in it anyway, so nobody is asked for a token; what is done
is in the audit log all the same.
"""

import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from fleet.errors import ConfigError, ServerError, UnauthenticatedError
from fleet.home import Home
from fleet.operators import audit_log, tokens
from fleet.operators.call import Call
from fleet.operators.chain import Entry, Head
from fleet.operators.roles import LOCAL
from fleet.operators.secret import SECRET_BYTES, digest_of, make_token
from fleet.operators.tokens import Made, Wanted
from fleet.repository.files import write_durable
from fleet.store.engine import Store, open_store

__all__ = [
    "create_token",
    "list_entries",
    "list_tokens",
    "local_token",
    "revoke_token",
    "verify_log",
]

T = TypeVar("T")


def local_token(home: Home) -> str:
    """The token of who may read the folder: the one that is there, or a new one. It stays, so that a command which
    goes on (``fleet rollout watch``) outlives a restart of the fleet manager.

    Raises:
        ServerError: it cannot be written.
    """
    try:
        if stat.S_IMODE(home.local_token.stat().st_mode) & 0o077 == 0:
            token = home.local_token.read_text(encoding="ascii").strip()
            digest_of(token)
            return token
    except (OSError, ValueError, UnauthenticatedError):
        pass  # missing, damaged or cut short: a new one does
    token = make_token(secrets.token_bytes(SECRET_BYTES))
    write_durable(home.local_token, f"{token}\n".encode(), mode=0o600)
    return token


def create_token(home: Home, wanted: Wanted) -> Made:
    """Make a token. Raises RequestError, ConflictError, ConfigError, ServerError."""
    return _changed(
        home,
        "token create",
        wanted.name,
        lambda connection: tokens.create(connection, wanted, LOCAL, time.time()),
    )


def revoke_token(home: Home, name: str) -> str:
    """Take a token back; its name. Raises NotFoundError, ConfigError, ServerError."""
    return _changed(
        home,
        "token revoke",
        name,
        lambda connection: tokens.revoke(connection, name, LOCAL, time.time()),
    )


def list_tokens(home: Home) -> Sequence[dict[str, Any]]:
    """Every token there ever was. Raises ConfigError."""
    with _opened(home) as store, store.read() as connection:
        return tokens.list_all(connection, time.time())


def list_entries(home: Home, limit: int) -> list[Entry]:
    """The newest entries of the audit log. Raises ConfigError."""
    with _opened(home) as store, store.read() as connection:
        return audit_log.newest(connection, limit)


def verify_log(home: Home, *expected: Head) -> Head:
    """The head of the log, when it is whole, and leads to the head in the file and to those ``expected``.

    Raises:
        RefusedError: it is not. ConfigError, ServerError: it cannot be read.
    """
    with _opened(home) as store, store.read() as connection:
        return audit_log.verify(connection, audit_log.read_head(home.audit_head), *expected)


def _changed(home: Home, operation: str, about: str, work: Callable[[Connection], T]) -> T:
    call = Call(LOCAL, operation, about, time.time)
    with _opened(home) as store:
        with store.begin() as connection:
            result = work(connection)
            call.record(connection, f"on the fleet folder, by user {os.getuid()}")
        with store.read() as connection:
            audit_log.keep_head(connection, home.audit_head)
    return result


@contextmanager
def _opened(home: Home) -> Iterator[Store]:
    if not home.database.is_file():
        raise ConfigError(
            f"{home.path} is no fleet folder: say where it is with --home, or set MUSTER_HOME. `fleet init` makes one"
        )
    store = open_store(home.database)
    try:
        yield store
    except SQLAlchemyError as error:
        raise ServerError(f"the database of {home.path} refused: {error}") from error
    finally:
        store.close()
