"""Signing requests: what travels, who may sign, what is merged, and every way in which a request is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.errors import ConflictError, FleetError, RefusedError, RequestError
from fleet.repository.request import (
    LIFE_S,
    MAX_REQUEST_BYTES,
    SigningRequest,
    next_version,
    parse_request,
    read_request,
    request_bytes,
)
from fleet.repository.request_rules import (
    check_request,
    merged,
    needs_of,
    needs_words,
    signed_by,
    with_signature,
)
from tests.support.production_fleet import ProductionFleet


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> ProductionFleet:
    return ProductionFleet(tmp_path_factory.mktemp("requests") / "fleet")


@pytest.fixture(scope="module")
def asked(production: ProductionFleet) -> SigningRequest:
    return production.release_request()


def travelled(request: SigningRequest) -> SigningRequest:
    return parse_request(request_bytes(request, []))


def test_a_request_says_all_that_it_changes(asked: SigningRequest) -> None:
    text = " ".join(asked.says)
    for part in (
        "adds bundles/camera/m-1: release 1 of m for class camera",
        "no speed limit",
        "version 1 becomes 2",
        "it holds until",
    ):
        assert part in text
    assert needs_words(needs_of(asked)) == (
        "0 of 2 signatures; 2 more of release-camera-1, release-camera-2, release-camera-3"
    )


def test_signatures_of_copies_that_travelled_apart_are_put_together(
    production: ProductionFleet, asked: SigningRequest
) -> None:
    one = travelled(with_signature(travelled(asked), production.key("release-camera", 1)))
    three = travelled(with_signature(travelled(asked), production.key("release-camera", 3)))
    for copy in (one, three):
        check_request(copy, production.now_s, production.root)
        assert [need.left for need in needs_of(copy)] == [1]
    whole = merged([one, three, one])
    assert signed_by(whole) == ("release-camera-1", "release-camera-3")
    assert [need.left for need in needs_of(whole)] == [0]
    assert not asked.metadata.signatures, "a request is a value"
    assert with_signature(one, production.key("release-camera", 1)) is one


def test_a_root_asks_for_the_old_and_the_new_keys(production: ProductionFleet) -> None:
    chain = production.chain("root")
    asked = production.request("root", next_version("root", chain.base, production.now_s), chain)
    assert [(need.by, need.threshold) for need in needs_of(asked)] == [
        ("current root", 3),
        ("new root", 3),
    ]
    check_request(travelled(production.signed(asked, 1, 5)), production.now_s, production.root)


def test_a_key_of_another_role_or_class_signs_nothing(
    production: ProductionFleet, asked: SigningRequest
) -> None:
    for role in ("release-gateway", "targets", "emergency"):
        with pytest.raises(RefusedError, match=r"may not sign release-camera .*release-camera-1"):
            with_signature(asked, production.key(role, 1))


def test_requests_that_are_not_copies_are_not_merged(
    production: ProductionFleet, asked: SigningRequest
) -> None:
    for other in (production.release_request(version="2"), production.release_request("gateway")):
        with pytest.raises(ConflictError, match="not copies of one request"):
            merged([asked, other])


Spoil = Callable[[dict[str, Any]], None]


def _targets_of(body: dict[str, Any]) -> dict[str, Any]:
    targets: dict[str, Any] = body["metadata"]["signed"]["targets"]
    return targets


def _another_digest(body: dict[str, Any]) -> None:
    _targets_of(body)["bundles/camera/m-1"]["hashes"]["sha256"] = "e" * 64


def _hidden_bundle(body: dict[str, Any]) -> None:
    """The addition is written into the published version too, so that it would not show."""
    body["base"]["signed"]["targets"] = _targets_of(body)
    body["manifests"] = {}


def _own_key(body: dict[str, Any]) -> None:
    delegations = body["targets"]["signed"]["delegations"]
    delegations["roles"][0]["threshold"] = 1


ALTERED: dict[str, tuple[Spoil, str]] = {
    "bytes after a signature": (
        lambda body: body["metadata"]["signed"].update(version=2, expires="2030-01-01T00:00:00Z"),
        "signature of release-camera-1 is over other bytes",
    ),
    "another digest": (_another_digest, "over other bytes"),
    "a change hidden in the base": (_hidden_bundle, "published version in it is not signed"),
    "a lower threshold": (_own_key, "targets role in it is not signed"),
    "a root nobody signed": (
        lambda body: body["roots"][0].update(signatures=[]),
        "root 1 in it is not signed",
    ),
    "a leap of versions": (
        lambda body: body["metadata"]["signed"].update(version=9),
        "version 9 does not follow",
    ),
    "no manifest": (lambda body: body.update(manifests={}), "manifests in it are not those"),
    "another manifest": (
        lambda body: body.update(manifests={"bundles/camera/m-1": "{}"}),
        "manifest of bundles/camera/m-1 in it is not the one",
    ),
    "a signature of a stranger": (
        lambda body: body["metadata"]["signatures"].append({"keyid": "f" * 64, "sig": "00"}),
        "key ffffffffffff, which may not sign",
    ),
    "an online role": (lambda body: body.update(role="rollout"), "signed by `fleet serve` alone"),
    "another role": (lambda body: body.update(role="release-gateway"), "not signed by enough"),
    "a role that is none": (lambda body: body.update(role="x"), "not signed by enough"),
}


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_request_is_refused(
    production: ProductionFleet, asked: SigningRequest, name: str
) -> None:
    spoil, problem = ALTERED[name]
    signed = production.signed(asked, 1)
    check_request(travelled(signed), production.now_s, production.root)
    body = json.loads(request_bytes(signed, []))
    spoil(body)
    with pytest.raises(RefusedError, match=problem):
        check_request(parse_request(json.dumps(body).encode()), production.now_s)


def test_words_that_lie_are_not_believed(asked: SigningRequest) -> None:
    body = json.loads(request_bytes(asked, []))
    body["says"] = ["nothing at all"]
    assert parse_request(json.dumps(body).encode()).says == asked.says


def test_another_fleets_request_is_refused_by_the_root_one_has_kept(
    asked: SigningRequest, production: ProductionFleet, tmp_path: Path
) -> None:
    stranger = ProductionFleet(tmp_path / "stranger")
    check_request(asked, production.now_s)
    with pytest.raises(RefusedError, match="does not come from the fleet whose root you gave"):
        check_request(asked, production.now_s, stranger.root)
    with pytest.raises(RequestError, match="the root to check by cannot be read"):
        check_request(asked, production.now_s, b"{}")


def test_a_request_expires(asked: SigningRequest, production: ProductionFleet) -> None:
    with pytest.raises(RefusedError, match="this signing request has expired"):
        check_request(asked, production.now_s + LIFE_S)
    old = replace(asked, expires_s=production.now_s + 400 * 86_400)
    with pytest.raises(RefusedError, match="has expired already; sign it again"):
        check_request(old, production.now_s + 181 * 86_400)


FORMS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not JSON"),
    "no object": (b"[]", "its format is 'none'"),
    "deep": (b"[" * 100_000, "is not JSON"),
    "of the future": (b'{"format": "muster-signing-request/2"}', "request/2', not"),
    "keys missing": (b'{"format": "muster-signing-request/1"}', "missing or unknown"),
    "too large": (b" " * (MAX_REQUEST_BYTES + 1), "is larger than"),
}


@pytest.mark.parametrize("name", FORMS)
def test_what_is_no_request_is_said(name: str, tmp_path: Path) -> None:
    raw, problem = FORMS[name]
    path = tmp_path / "x.json"
    path.write_bytes(raw)
    with pytest.raises(RequestError, match=f"x.json .*{problem}"):
        read_request(path)
    with pytest.raises(RequestError, match="cannot read the signing request"):
        read_request(tmp_path / "none.json")


nonsense = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(value=nonsense, data=st.data())
def test_nonsense_anywhere_in_a_request_never_crashes(
    production: ProductionFleet, asked: SigningRequest, value: Any, data: st.DataObject
) -> None:
    body = json.loads(request_bytes(asked, []))
    at: Any = body
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        inner = at[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            at[key] = value
            break
        at = inner
    try:
        request = parse_request(json.dumps(body).encode())
        check_request(request, production.now_s)
    except FleetError:
        return
    assert request.metadata.signed_bytes == asked.metadata.signed_bytes
