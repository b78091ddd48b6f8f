"""Tokens and the audit log in a real database."""

import json
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from fleet.errors import (
    ConflictError,
    NotFoundError,
    RefusedError,
    RequestError,
    ServerError,
    UnauthenticatedError,
)
from fleet.operators import audit_log, tokens
from fleet.operators.chain import START, Entry
from fleet.operators.roles import LOCAL, Role, Scope
from fleet.operators.secret import digest_of
from fleet.operators.tokens import Wanted
from fleet.store import Store, open_store
from tests.fleet.operators.test_chain import entry

NOW_S = 1_800_000_000.0


def add(store: Store, count: int) -> list[Entry]:
    with store.begin() as connection:
        return [audit_log.append(connection, entry(number)) for number in range(count)]


# --- the audit log --------------------------------------------------------------------------------


def test_entries_are_numbered_chained_and_paged(store: Store) -> None:
    written = add(store, 5)
    assert [one.number for one in written] == [1, 2, 3, 4, 5]
    with store.read() as connection:
        assert audit_log.newest(connection, 2) == [written[4], written[3]]
        assert audit_log.newest(connection, 2, before=4) == [written[2], written[1]]
        assert list(audit_log.entries_after(connection)) == written
        assert audit_log.verify(connection) == written[-1].head


def test_more_than_one_page_is_verified(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "_PAGE", 2)
    for count in (4, 5):
        add(store, count)
        with store.read() as connection:
            assert audit_log.verify(connection).number in {4, 9}


def test_an_entry_goes_with_its_transaction(store: Store) -> None:
    def fail() -> None:
        with store.begin() as connection:
            audit_log.append(connection, entry())
            raise RuntimeError("taken back")

    with pytest.raises(RuntimeError):
        fail()
    with store.read() as connection:
        assert audit_log.head_of(connection) == START


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_log SET reason = ''", "DELETE FROM audit_log WHERE number = 2"]
)
def test_the_database_refuses_to_change_what_is_written(store: Store, statement: str) -> None:
    add(store, 3)
    with pytest.raises(IntegrityError, match="the audit log is only added to"), store.begin() as c:
        c.execute(text(statement))
    with store.read() as connection:
        assert audit_log.verify(connection).number == 3


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE audit_log SET name = 'eve' WHERE number = 2", "entry 2 .* was altered"),
        ("DELETE FROM audit_log WHERE number = 2", "entries are missing"),
        ("DELETE FROM audit_log WHERE number = 1", "entries are missing"),
        ("DELETE FROM audit_log WHERE number = 3", "the newest 1 were cut off"),
        ("DELETE FROM audit_log", "the newest 3 were cut off"),
    ],
)
def test_who_gets_past_the_triggers_is_found(
    store: Store, tmp_path: Path, statement: str, says: str
) -> None:
    add(store, 3)
    head_file = tmp_path / "head.json"
    with store.read() as connection:
        audit_log.keep_head(connection, head_file)
    with store.begin() as connection:
        connection.execute(text("DROP TRIGGER audit_log_no_update"))
        connection.execute(text("DROP TRIGGER audit_log_no_delete"))
        connection.execute(text(statement))
    with store.read() as connection, pytest.raises(RefusedError, match=says):
        audit_log.verify(connection, audit_log.read_head(head_file))


def test_the_head_goes_forward_and_never_over_a_cut(store: Store, tmp_path: Path) -> None:
    head_file = tmp_path / "head.json"
    with store.read() as connection:
        assert audit_log.keep_head(connection, head_file) == START
    assert not head_file.exists()
    written = add(store, 3)
    with store.read() as connection:
        assert audit_log.keep_head(connection, head_file) == written[-1].head
    assert head_file.stat().st_mode & 0o777 == 0o600
    with store.begin() as connection:
        connection.execute(text("DROP TRIGGER audit_log_no_delete"))
        connection.execute(text("DELETE FROM audit_log WHERE number = 3"))
    for says in ("was cut off", "was written anew"):
        with store.read() as connection, pytest.raises(RefusedError, match=says):
            audit_log.keep_head(connection, head_file)
        assert audit_log.read_head(head_file) == written[-1].head
        with store.begin() as connection:
            audit_log.append(connection, entry(77))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"number": 1}', '{"number": 1, "sha256": 7}'])
def test_a_damaged_head_is_told_and_left(store: Store, tmp_path: Path, content: str) -> None:
    head_file = tmp_path / "head.json"
    head_file.write_text(content)
    add(store, 1)
    with store.read() as connection, pytest.raises(ServerError, match="run `fleet audit verify`"):
        audit_log.keep_head(connection, head_file)
    assert head_file.read_text() == content


# --- tokens ---------------------------------------------------------------------------------------


def make(store: Store, name: str = "ada", **changes: object) -> tokens.Made:
    wanted = Wanted(**{"name": name, "role": Role.OPERATOR, **changes})  # type: ignore[arg-type]
    with store.begin() as connection:
        return tokens.create(connection, wanted, LOCAL, NOW_S)


def find(store: Store, token: str, now_s: float = NOW_S) -> tokens.Known:
    with store.read() as connection:
        return tokens.find(connection, digest_of(token), now_s)


def test_a_token_is_found_until_it_expires(store: Store) -> None:
    made = make(store, scope=Scope(("m",)), life_s=100.0)
    known = find(store, made.token)
    assert (known.caller.name, known.caller.role) == ("ada", Role.OPERATOR)
    assert (known.caller.scope, known.last_used_s) == (Scope(("m",)), None)
    with store.begin() as connection:
        tokens.used(connection, made.id, NOW_S + 5)
    assert find(store, made.token).last_used_s == NOW_S + 5
    find(store, made.token, NOW_S + 99.9)
    with pytest.raises(UnauthenticatedError):
        find(store, made.token, NOW_S + 100)


def test_unknown_expired_and_revoked_are_told_the_same(store: Store) -> None:
    expired, revoked = make(store, "a", life_s=60.0), make(store, "b")
    with store.begin() as connection:
        tokens.revoke(connection, "b", LOCAL, NOW_S)
    other = open_store(Path(str(store.engine.url.database) + ".other"))
    unknown = make(other, "c")
    other.close()
    said = set()
    for made in (expired, revoked, unknown):
        with pytest.raises(UnauthenticatedError) as caught:
            find(store, made.token, NOW_S + 61)
        said.add(str(caught.value))
    assert len(said) == 1


def test_the_token_itself_is_nowhere_in_the_database(store: Store) -> None:
    made = make(store)
    path = Path(str(store.engine.url.database))
    secret = made.token.removeprefix("muster_").encode()
    for file in path.parent.glob("fleet.db*"):
        assert secret not in file.read_bytes()
    with store.read() as connection:
        listed = tokens.list_all(connection, NOW_S)
    assert "sha256" not in listed[0]
    assert made.token not in json.dumps(listed)


def test_a_name_is_given_once_at_a_time(store: Store) -> None:
    first = make(store)
    with pytest.raises(ConflictError, match="fleet token revoke ada"):
        make(store)
    with store.begin() as connection:
        assert tokens.revoke(connection, first.id, LOCAL, NOW_S) == "ada"
        assert tokens.revoke(connection, "ada", LOCAL, NOW_S + 9) == "ada"  # twice is as once
    second = make(store)
    with store.read() as connection:
        listed = tokens.list_all(connection, NOW_S)
        assert tokens.good_tokens(connection, NOW_S) == 1
        assert tokens.good_tokens(connection, NOW_S + 1e9) == 0
    assert sorted((one["id"], one["state"], one["revoked_s"]) for one in listed) == sorted(
        [(first.id, "revoked", NOW_S), (second.id, "good", None)]
    )


def test_a_token_that_never_was_cannot_be_revoked(store: Store) -> None:
    with store.begin() as connection, pytest.raises(NotFoundError, match="fleet token list"):
        tokens.revoke(connection, "eve", LOCAL, NOW_S)


@pytest.mark.parametrize("life_s", [0.0, -1.0, 59.0, 1e12, float("nan")])
def test_lives_that_no_token_has(store: Store, life_s: float) -> None:
    with pytest.raises(RequestError, match="a token lives between"):
        make(store, life_s=life_s)


def test_there_are_only_so_many_tokens(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_GOOD", 2)
    make(store, "a")
    make(store, "b")
    with pytest.raises(ConflictError, match="there are 2 tokens"):
        make(store, "c")
