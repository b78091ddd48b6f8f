"""Tokens in the database: made, listed, revoked, found again.

Rules kept here: of a token the database has the SHA-256 alone; of the tokens that are good, no two have the same
name; whoever shows one that is unknown, expired or revoked is told the same, after the same work.
"""

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, func, or_, select, update
from sqlalchemy import insert as sql_insert

from fleet.errors import ConflictError, NotFoundError, RequestError, UnauthenticatedError
from fleet.operators.roles import Caller, Role, Scope, check_name, scope_from_row
from fleet.operators.secret import SECRET_BYTES, digest_of, make_token
from fleet.store.tables import operator_tokens

__all__ = [
    "DAY_S",
    "Known",
    "Made",
    "Wanted",
    "create",
    "find",
    "good_tokens",
    "list_all",
    "revoke",
    "used",
]

DAY_S: Final = 86_400.0
LEAST_LIFE_S: Final = 60.0
MOST_LIFE_S: Final = 3650 * DAY_S
MAX_GOOD: Final = 1000
_NO_DIGEST: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class Wanted:
    """A token to be made."""

    name: str
    role: Role
    life_s: float = 90 * DAY_S
    scope: Scope = field(default_factory=Scope)


@dataclass(frozen=True, slots=True)
class Made:
    """The one time that a token is shown."""

    token: str
    id: str
    name: str
    role: Role
    scope: Scope
    expires_s: float

    def to_json(self) -> dict[str, Any]:
        return {
            "token": self.token,
            "id": self.id,
            "name": self.name,
            "role": str(self.role),
            "scope": self.scope.to_json(),
            "expires_s": self.expires_s,
        }


@dataclass(frozen=True, slots=True)
class Known:
    """A caller that has shown a good token, and when that was last noted."""

    caller: Caller
    last_used_s: float | None


def create(connection: Connection, wanted: Wanted, by: Caller, now_s: float) -> Made:
    """Make a token.

    Raises:
        RequestError: the name or the life is none that a token can have.
        ConflictError: a good token has that name, or there are too many.
    """
    check_name(wanted.name)
    if not LEAST_LIFE_S <= wanted.life_s <= MOST_LIFE_S:  # also refuses NaN
        raise RequestError(
            f"a token lives between {LEAST_LIFE_S:g} s and {MOST_LIFE_S / DAY_S:g} days, not {wanted.life_s:g} s"
        )
    columns = operator_tokens.c
    taken = connection.scalar(
        select(columns.id).where(columns.name == wanted.name, _is_good(now_s))
    )
    if taken is not None:
        raise ConflictError(
            f"there is a token {wanted.name!r}: revoke it first with `fleet token revoke {wanted.name}`, or use "
            "another name"
        )
    if good_tokens(connection, now_s) >= MAX_GOOD:
        raise ConflictError(f"there are {MAX_GOOD} tokens: revoke those that nobody uses")
    token, token_id = make_token(secrets.token_bytes(SECRET_BYTES)), secrets.token_hex(4)
    expires_s = now_s + wanted.life_s
    connection.execute(
        sql_insert(operator_tokens).values(
            id=token_id,
            name=wanted.name,
            role=str(wanted.role),
            scope=wanted.scope.to_json(),
            sha256=digest_of(token),
            created_s=now_s,
            created_by=by.name,
            expires_s=expires_s,
            revoked_by="",
        )
    )
    return Made(token, token_id, wanted.name, wanted.role, wanted.scope, expires_s)


def revoke(connection: Connection, name: str, by: Caller, now_s: float) -> str:
    """Take a token back, by its name or id; its name. Asked for twice it happens once.

    Raises:
        NotFoundError: there never was one.
    """
    columns = operator_tokens.c
    query = select(columns.id, columns.name).where(or_(columns.name == name, columns.id == name))
    rows = connection.execute(query.order_by(columns.created_s.desc())).all()
    if not rows:
        raise NotFoundError(f"there is no token {name!r:.80}: see `fleet token list`")
    found = columns.id.in_([row.id for row in rows])
    connection.execute(
        update(operator_tokens)
        .where(found, columns.revoked_s.is_(None))
        .values(revoked_s=now_s, revoked_by=by.name)
    )
    return str(rows[0].name)


def find(connection: Connection, digest: str, now_s: float) -> Known:
    """Who has the token with this digest.

    Raises:
        UnauthenticatedError: nobody, or no longer.
    """
    row = connection.execute(
        select(operator_tokens).where(operator_tokens.c.sha256 == digest)
    ).first()
    # The search is by digest, so what its time tells is about a digest; the comparison tells nothing at all.
    is_same = hmac.compare_digest(digest, _NO_DIGEST if row is None else row.sha256)
    is_good = row is not None and row.revoked_s is None and now_s < row.expires_s
    if row is None or not (is_same and is_good):
        raise UnauthenticatedError(
            "this token is not accepted: it is unknown, expired or revoked. Ask an admin of the fleet for another one"
        )
    caller = Caller(row.id, row.name, Role(row.role), scope_from_row(row.scope))
    return Known(caller, row.last_used_s)


def used(connection: Connection, token_id: str, now_s: float) -> None:
    """Note when a token was last used."""
    row = operator_tokens.c.id == token_id
    connection.execute(update(operator_tokens).where(row).values(last_used_s=now_s))


def good_tokens(connection: Connection, now_s: float) -> int:
    """How many are neither expired nor revoked."""
    query = select(func.count()).select_from(operator_tokens).where(_is_good(now_s))
    return int(connection.execute(query).scalar_one())


def list_all(connection: Connection, now_s: float) -> Sequence[dict[str, Any]]:
    """Every token there ever was, by name; never the token or its digest."""
    columns = operator_tokens.c
    shown = [column for column in columns if column.name != "sha256"]
    rows = connection.execute(select(*shown).order_by(columns.name, columns.created_s))
    return [{**row._mapping, "state": _state(row, now_s)} for row in rows]


def _state(row: Any, now_s: float) -> str:
    if row.revoked_s is not None:
        return "revoked"
    return "good" if now_s < row.expires_s else "expired"


def _is_good(now_s: float) -> Any:
    return operator_tokens.c.revoked_s.is_(None) & (operator_tokens.c.expires_s > now_s)
