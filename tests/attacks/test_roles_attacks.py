"""Attacks on thresholds and on the release roles of device classes, named by what is stolen or forged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, MetaFile, TargetFile

from agent.trust import BundleRelease, Reason, Verb, decide
from agent.trust.decision import DeviceFacts
from agent.trust.errors import (
    LengthOrHashError,
    OversizeError,
    RefusedMetadataError,
    SignatureError,
)
from agent.trust.limits import TrustLimits
from agent.trust.pack import encode_pack, open_pack
from agent.trust.reading import directives, releases
from fleet.errors import RefusedError
from fleet.repository.keys import key_path, load_key
from fleet.repository.request import next_version
from fleet.repository.roles import to_bytes
from tests.support.production_fleet import ProductionFleet
from tests.support.signed_fleet import Reader, directive_for


@pytest.fixture
def production(tmp_path: Path) -> ProductionFleet:
    return ProductionFleet(tmp_path / "fleet")


def with_foreign_bundle(production: ProductionFleet) -> tuple[BundleRelease, Metadata[Any]]:
    """What the holders of the camera keys sign for a gateway."""
    mine = production.publish("camera")
    path = "bundles/gateway/m-1"
    foreign = replace(mine, path=path, device_class="gateway")
    following = next_version(
        "release-camera", production.chain("release-camera").base, production.now_s
    )
    hashes = {"sha256": foreign.sha256}
    following.signed.targets[path] = TargetFile(
        foreign.length, hashes, path, {"custom": foreign.to_json()}
    )
    for number in (1, 2):
        following.sign(production.key("release-camera", number), append=True)
    return foreign, following


def pack_naming(production: ProductionFleet, role: str, raw: bytes, version: int) -> bytes:
    """A pack that leads to this file of a role: what whoever holds the online keys can make."""
    files = open_pack(production.repository.pack(), TrustLimits())
    name = next(name for name in files if name.endswith(".snapshot.json"))
    snapshot: Metadata[Any] = Metadata.from_bytes(files.pop(name))
    snapshot.signed.version += 1
    snapshot.signed.meta[f"{role}.json"] = MetaFile.from_data(version, raw, ["sha256"])
    snapshot.sign(load_key(key_path(production.home, "snapshot")))
    raw_snapshot = to_bytes(snapshot)
    timestamp: Metadata[Any] = Metadata.from_bytes(files["timestamp.json"])
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile.from_data(
        snapshot.signed.version, raw_snapshot, ["sha256"]
    )
    timestamp.sign(load_key(key_path(production.home, "timestamp")))
    signed = {f"{snapshot.signed.version}.snapshot.json": raw_snapshot}
    return encode_pack(files | signed | {"timestamp.json": to_bytes(timestamp)})


@pytest.mark.parametrize(
    ("device_class", "answer"),
    [
        ("gateway", (Verb.REFUSE, Reason.NOT_RELEASED)),
        ("camera", (Verb.NONE, Reason.OTHER_CLASS)),
    ],
)
def test_camera_release_key_cannot_publish_for_a_gateway(
    production: ProductionFleet, device_class: str, answer: tuple[Verb, Reason]
) -> None:
    """Not through the fleet manager, and with the online keys stolen too not past it either."""
    foreign, following = with_foreign_bundle(production)
    raw = to_bytes(following)
    with pytest.raises(RefusedError, match="release-gateway speaks for it"):
        production.repository.accept("release-camera", raw, production.now_s)

    before = releases(
        Reader(production.root, device_class=device_class).refresh(
            production.offered(), None, production.now_s
        )
    )
    production.repository.set_directives([directive_for(foreign)], production.now_s)
    pack = pack_naming(production, "release-camera", raw, following.signed.version)
    device = Reader(production.root, device_class=device_class)
    source = production.offered(**{"release-camera": raw})
    state = device.refresh(source, pack, production.now_s)
    assert releases(state) == before, "what it had, and nothing of the other class"
    assert len(directives(state)) == 1
    (decision,) = decide(
        directives(state),
        releases(state),
        DeviceFacts("d-1", device_class, "x86_64"),
        {},
        state.floors_for(device_class),
        production.now_s,
    )
    assert (decision.verb, decision.reason) == answer


@pytest.mark.parametrize("role", ["targets", "release-camera"])
def test_one_stolen_offline_key_of_a_threshold_of_two(
    production: ProductionFleet, role: str
) -> None:
    """With all online keys besides: devices ask for the second signature."""
    production.publish("camera")
    device = Reader(production.root, device_class="camera")
    state = device.refresh(production.offered(), None, production.now_s)
    following = next_version(role, production.chain(role).base, production.now_s)
    following.sign(production.key(role, 1))
    raw = to_bytes(following)
    pack = pack_naming(production, role, raw, following.signed.version)
    with pytest.raises(RefusedMetadataError) as caught:
        device.refresh(production.offered(**{role: raw}), pack, production.now_s)
    assert type(caught.value) is SignatureError
    assert device.state is state
    assert list(releases(device.state)) == ["bundles/camera/m-1"]


def test_two_stolen_root_keys_of_a_threshold_of_three(production: ProductionFleet) -> None:
    device = Reader(production.root, device_class="camera")
    state = device.refresh(production.offered(), None, production.now_s)
    following = next_version("root", production.chain("root").base, production.now_s)
    for number in (1, 2):
        following.sign(production.key("root", number), append=True)
    with pytest.raises(RefusedMetadataError) as caught:
        device.refresh(production.offered(root=to_bytes(following)), None, production.now_s)
    assert type(caught.value) is SignatureError
    assert device.state is state


def test_one_key_that_signs_twice_under_two_ids(production: ProductionFleet) -> None:
    """A second signature by the same key under the name of another key is none."""
    asked = production.signed(production.release_request(), 1)
    other = production.key("release-camera", 2).public_key.keyid
    (own,) = asked.metadata.signatures
    forged: Metadata[Any] = Metadata.from_dict(asked.metadata.to_dict())
    body = forged.to_dict()
    body["signatures"].append({"keyid": other, "sig": body["signatures"][0]["sig"]})
    assert own != other
    raw = to_bytes(Metadata.from_dict(body))
    with pytest.raises(RefusedError, match="release-camera: 1 signature more"):
        production.repository.accept("release-camera", raw, production.now_s)


def test_release_role_of_another_class_offered_under_this_name(production: ProductionFleet) -> None:
    production.publish("camera")
    production.publish("gateway")
    other = production.repository.role_metadata("release-gateway")
    device = Reader(production.root, device_class="camera")
    with pytest.raises(RefusedMetadataError) as caught:
        device.refresh(production.offered(**{"release-camera": other}), None, production.now_s)
    assert type(caught.value) in {LengthOrHashError, OversizeError}
