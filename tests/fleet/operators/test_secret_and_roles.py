"""The text of a token, names, roles and scopes."""

import secrets
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import ForbiddenError, RequestError, UnauthenticatedError
from fleet.operators.roles import LOCAL, NOBODY, Caller, Role, Scope, check_name, parse_scope
from fleet.operators.secret import digest_of, make_token

RANDOM = bytes(range(32))


def test_a_token_has_a_form_that_a_scanner_finds() -> None:
    token = make_token(RANDOM)
    assert token.startswith("muster_")
    assert len(token) == 56
    assert token.removeprefix("muster_").isalnum()


@given(st.binary(min_size=32, max_size=32))
def test_every_random_number_has_a_token_of_its_own(random: bytes) -> None:
    token = make_token(random)
    assert len(token) == 56
    assert len(digest_of(token)) == 64
    other = bytes([random[0] ^ 1]) + random[1:]
    assert make_token(other) != token


@given(st.integers(0, 55), st.sampled_from("0Aaz9_ é"))
def test_a_mistyped_character_is_noticed_without_asking_anybody(at: int, wrong: str) -> None:
    token = make_token(RANDOM)
    mistyped = token[:at] + wrong + token[at + 1 :]
    if mistyped == token:
        return
    with pytest.raises(UnauthenticatedError, match="that is no token of Muster's") as caught:
        digest_of(mistyped)
    assert mistyped not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "muster_", "x" * 10_000, make_token(RANDOM)[:-1], make_token(RANDOM) + "\n"]
)
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(UnauthenticatedError):
        digest_of(text)


def test_too_few_random_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="32 random bytes"):
        make_token(secrets.token_bytes(16))


def test_each_role_covers_those_below_it() -> None:
    table = {(one, other) for one in Role for other in Role if one.covers(other)}
    viewer, operator, admin = Role.VIEWER, Role.OPERATOR, Role.ADMIN
    assert table == {
        (viewer, viewer), (operator, viewer), (operator, operator),
        (admin, viewer), (admin, operator), (admin, admin),
    }  # fmt: skip


def test_a_role_that_is_not_enough_is_told_in_words() -> None:
    ada = Caller("1", "ada", Role.VIEWER)
    ada.require(Role.VIEWER, "`status`")
    with pytest.raises(ForbiddenError) as caught:
        ada.require(Role.OPERATOR, "`rollout start`")
    assert str(caught.value).startswith(
        "`rollout start` needs the role operator, and the token 'ada' is a viewer's"
    )
    with pytest.raises(ForbiddenError):
        NOBODY.require(Role.VIEWER, "`status`")
    LOCAL.require(Role.ADMIN, "`token create`")


@pytest.mark.parametrize(
    ("scope", "model", "device_class", "may"),
    [
        (Scope(), "m", "edge", True),
        (Scope(("m",)), "m", "edge", True),
        (Scope(("m",)), "n", "edge", False),
        (Scope((), ("edge",)), "n", "edge", True),
        (Scope((), ("edge",)), "n", "cam", False),
        (Scope(("m",), ("edge",)), "m", "cam", False),
        (Scope(("m", "n"), ("edge", "cam")), "n", "cam", True),
    ],
)
def test_a_scope_restricts_what_is_changed(
    scope: Scope, model: str, device_class: str, may: bool
) -> None:
    caller = Caller("1", "ci", Role.OPERATOR, scope)
    if may:
        caller.require_scope(model, device_class)
        return
    with pytest.raises(ForbiddenError, match=f"not for model {model} on class {device_class}"):
        caller.require_scope(model, device_class)


@pytest.mark.parametrize("name", ["ada", "ci@build-7", "a.b_c", "9", "a" * 64])
def test_names_that_a_token_can_have(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "Ada", "local", "controller", "a b", "-a", "a" * 65, "ä", "a/b", "a\n"]
)
def test_names_that_no_token_can_have(name: str) -> None:
    with pytest.raises(RequestError, match="cannot be the name of a token"):
        check_name(name)


@pytest.mark.parametrize(
    ("said", "role", "text"),
    [
        ({"modell": ["m"]}, Role.OPERATOR, "use model or class"),
        ({"model": [""]}, Role.OPERATOR, "is no name of a model"),
        ({"class": ["a/b"]}, Role.OPERATOR, "is no name of a class"),
        ({"model": [f"m{n}" for n in range(33)]}, Role.OPERATOR, "at most 32"),
        ({"model": ["m"]}, Role.ADMIN, "a token of role admin has none"),
        ({"class": ["m"]}, Role.VIEWER, "a token of role viewer has none"),
    ],
)
def test_scopes_that_are_refused(said: Any, role: Role, text: str) -> None:
    with pytest.raises(RequestError, match=text):
        parse_scope(said, role)


def test_a_scope_reads_back_as_it_was() -> None:
    scope = parse_scope({"model": ["n", "m", "m"], "class": ["edge"]}, Role.OPERATOR)
    assert str(scope) == "model=m, model=n, class=edge"
    assert parse_scope(scope.to_json(), Role.OPERATOR) == scope
    assert parse_scope({}, Role.ADMIN).is_all
