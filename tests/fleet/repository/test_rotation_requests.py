"""New keys for a role whose holders are elsewhere: the change travels as a signing request, and counts as a whole."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, TargetFile

from fleet.errors import FleetError, RefusedError
from fleet.repository.change_keys import KeyWish, change_key, named_keys
from fleet.repository.keys import load_key
from fleet.repository.request import SigningRequest, parse_request, request_bytes
from fleet.repository.request_rules import (
    check_request,
    merged,
    needs_of,
    needs_words,
    signers_of,
    with_signature,
)
from fleet.repository.roles import TOP_ROLES
from tests.support.production_fleet import ProductionFleet
from tests.support.signed_fleet import Reader

ROLES = ("root", "targets", "release-camera", "emergency", "rollout", "snapshot", "timestamp")


@pytest.fixture
def production(tmp_path: Path) -> ProductionFleet:
    """One bundle is published, signed by two of the three holders."""
    fleet = ProductionFleet(tmp_path / "fleet")
    fleet.publish("camera")
    return fleet


@pytest.fixture
def holders(production: ProductionFleet, tmp_path: Path) -> dict[str, CryptoSigner]:
    """The offline keys, taken away from the fleet folder."""
    away = tmp_path / "holders"
    (production.home / "keys" / "offline").rename(away)
    return {path.stem: load_key(path) for path in sorted(away.glob("*.pem"))}


def keyids(production: ProductionFleet, role: str) -> list[str]:
    generation = production.repository.generation
    delegator = generation.root if role in TOP_ROLES else generation.targets("targets")
    return list(delegator.get_delegated_role(role).keyids)


def asked_for(production: ProductionFleet, role: str) -> tuple[SigningRequest, str, str]:
    """The request for a new key of a role, as it arrives at its holders; the new key and the old one."""
    wish = KeyWish(role=role, revoke=keyids(production, role)[0])
    done = change_key(production.home, production.repository, wish, production.now_s)
    assert done.request is not None
    assert done.versions == {}
    return parse_request(request_bytes(done.request, [])), done.added, done.revoked


def signed_by_all(
    request: SigningRequest, holders: dict[str, CryptoSigner], but: int = 0
) -> SigningRequest:
    """Signed by every holder who may, each on a copy, but for the last few."""
    may = signers_of(request)
    keys = [key for key in holders.values() if key.public_key.keyid in may]
    copies = [with_signature(request, key) for key in keys[: len(keys) - but]]
    return merged([request, *copies])


@pytest.mark.parametrize("role", ROLES)
def test_every_role_gets_a_new_key_by_a_request_and_a_device_follows(
    production: ProductionFleet, holders: dict[str, CryptoSigner], role: str
) -> None:
    device = Reader(production.root, device_class="camera")
    device.refresh(production.offered(), None, production.now_s)
    request, new, old = asked_for(production, role)
    assert any("may sign from now on" in line for line in request.says)
    check_request(request, production.now_s, production.root)
    with pytest.raises(RefusedError):
        production.take(request)
    assert old in named_keys(production.repository.generation)
    signed = signed_by_all(request, holders)
    check_request(signed, production.now_s, production.root)
    production.take(signed)
    assert new in keyids(production, role)
    assert old not in named_keys(production.repository.generation)
    assert production.repository.resign_if_due(production.now_s + 6 * 86_400)
    device.refresh(production.offered(), None, production.now_s)
    held = (
        Metadata.from_bytes((production.home / "root.json").read_bytes())
        if role in TOP_ROLES
        else None
    )
    assert held is None or held.signed.version == 2


def test_a_role_that_its_other_keys_have_not_signed_is_signed_again_in_the_same_request(
    production: ProductionFleet, holders: dict[str, CryptoSigner]
) -> None:
    """The bundle was signed by keys 1 and 2; without 1 there is one signature too few."""
    request, _, _ = asked_for(production, "release-camera")
    assert set(request.files) == {"targets", "release-camera"}
    assert any(
        line
        == "together with release-camera: nothing but the time: the same content is signed for longer"
        for line in request.says
    )
    own = {name: key for name, key in holders.items() if name.startswith("targets")}
    by_targets = signed_by_all(request, own)
    assert [(need.role, need.left) for need in needs_of(by_targets)] == [
        ("targets", 0),
        ("release-camera", 1),
    ]
    assert "that the new targets role asks for under release-camera" in needs_words(
        needs_of(by_targets)
    )
    with pytest.raises(RefusedError, match="release-camera: 1 signature more"):
        production.take(by_targets)
    whole = with_signature(by_targets, holders["release-camera-3"])
    production.take(whole)
    assert list(production.repository.releases()) == ["bundles/camera/m-1"]
    with pytest.raises(RefusedError, match="may not sign targets"):
        with_signature(request, holders["release-camera-1"])


def test_a_bundle_slipped_into_what_comes_along(
    production: ProductionFleet, holders: dict[str, CryptoSigner]
) -> None:
    request, _, _ = asked_for(production, "release-camera")
    companion = Metadata.from_dict(request.companions["release-camera"].to_dict())
    companion.signatures.clear()
    companion.signed.targets["bundles/camera/x-1"] = TargetFile(1, {"sha256": "e" * 64}, "x")
    altered = replace(request, companions={"release-camera": companion})
    with pytest.raises(RefusedError, match="says more than is published"):
        check_request(altered, production.now_s)
    with pytest.raises(RefusedError, match="published version of release-camera is not in it"):
        check_request(replace(altered, bases={}), production.now_s)
    hidden = replace(altered, bases={"release-camera": companion})
    with pytest.raises(
        RefusedError, match="published version of release-camera in it is not signed"
    ):
        check_request(hidden, production.now_s)
    assert holders


def test_files_that_do_not_belong_together(
    production: ProductionFleet, holders: dict[str, CryptoSigner]
) -> None:
    request, _, _ = asked_for(production, "timestamp")
    assert holders
    release = Metadata.from_bytes(production.repository.role_metadata("release-camera"))
    for stray in ({"companions": {"release-camera": release}}, {"bases": {"targets": release}}):
        with pytest.raises(RefusedError, match="does not belong to root"):
            check_request(replace(request, **stray), production.now_s)
    for field in ("companions", "bases"):
        body = json.loads(request_bytes(request, []))
        body[field] = {"targets": {}}
        with pytest.raises(FleetError, match="does not have the form"):
            parse_request(json.dumps(body).encode())


def test_a_key_is_made_once_however_often_it_is_asked_for(
    production: ProductionFleet, holders: dict[str, CryptoSigner]
) -> None:
    first, new, _ = asked_for(production, "timestamp")
    again, same, _ = asked_for(production, "timestamp")
    assert (new, first.metadata.signed_bytes) == (same, again.metadata.signed_bytes)
    assert any("role timestamp: timestamp (" in line for line in first.says), "named for people"
    production.take(signed_by_all(again, holders, but=2))
    assert keyids(production, "timestamp") == [new]
