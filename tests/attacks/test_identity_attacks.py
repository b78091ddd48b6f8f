"""Attacks on who a device is: each is refused with its reason, and the device goes on with what it had."""

import asyncio
import shutil
import time
from pathlib import Path

import pytest

from agent.adapters.enrol_link import EnrolLink, fetch_server_ca
from agent.adapters.identity_disk import IdentityDisk
from agent.adapters.tls_channel import TlsMaterial
from agent.errors import LinkError
from agent.identity.certificate import parse_key, request
from agent.identity.errors import EnrolmentRefusedError
from agent.identity.store import IdentityStore
from agent.state_dir import IdentityPaths
from fleet.home import PkiPaths
from fleet.registry.authority import (
    certificate_pem,
    load_authority,
    load_certificate,
    make_authority,
    spki_sha256,
)
from fleet.registry.device_ca import issue_to_device, requested_key
from fleet.registry.pki import init_pki
from protos.identity import DeviceName, Token
from tests.support.identity import OPTIONS, EnrollingDevice, secure_fleet

DAY_S = 86400.0
NAME = DeviceName("lab", "camera", "cam-1")


async def enrolled(fleet, folder: Path, device_id: str = "cam-1") -> EnrollingDevice:
    device = EnrollingDevice(fleet, folder / device_id, device_id)
    await device.enrol(await fleet.token(device_id))
    await device.speak()
    return device


async def test_a_cloned_device_raises_the_alarm_and_is_quarantined(tmp_path: Path) -> None:
    """Somebody copies a device's keys. Whichever of the two renews second gives both away."""
    async with secure_fleet(tmp_path) as fleet:
        device = await enrolled(fleet, tmp_path)
        shutil.copytree(tmp_path / "cam-1", tmp_path / "copy")
        await device.renew()
        await device.speak()
        clone = EnrollingDevice(fleet, tmp_path / "copy", "cam-1")
        with pytest.raises(EnrolmentRefusedError, match="two hold this device's keys"):
            await clone.renew()
        identity = await fleet.identity()
        assert identity["standing"] == "quarantined"
        assert identity["events"][0]["event"] == "cloned"
        with pytest.raises(EnrolmentRefusedError, match=r"is quarantined .*accept or revoke it"):
            await device.speak()
        assert (
            device.store.open_identity() is not None
        )  # what it has stays, for the operator to decide
        await fleet.decide("cam-1", "accept", "restored from a backup")
        await device.speak()
        await device.close()
        await clone.close()


async def test_a_server_that_stands_between_is_not_believed(tmp_path: Path) -> None:
    """Another server with the right name: a token knows its own by a fingerprint, a device by its CA."""
    async with secure_fleet(tmp_path) as fleet:
        other = PkiPaths(tmp_path / "other")
        init_pki(other, "lab", (), time.time())
        wrong = Token("s" * 43, spki_sha256(load_certificate(other.server_ca)))
        device = EnrollingDevice(fleet, tmp_path / "cam-1")
        with pytest.raises(EnrolmentRefusedError, match="somebody stands between"):
            await device.enrol(wrong.text)
        assert not device.paths.server_ca.exists()
        link = EnrolLink(fleet.enrolment, other.server_ca.read_bytes(), OPTIONS)
        with pytest.raises(LinkError, match="CERTIFICATE_VERIFY_FAILED"):
            await link.nonce("cam-1")


async def test_nobody_or_somebody_without_tls_is_no_fleet_manager(tmp_path: Path) -> None:
    async with asyncio.timeout(120):
        silent = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
        host, port = silent.sockets[0].getsockname()
        with pytest.raises(LinkError, match="no fleet manager with TLS answers"):
            await asyncio.to_thread(fetch_server_ca, (host, port), "0" * 64, 30.0)
        silent.close()
        await silent.wait_closed()


async def test_a_certificate_that_the_database_does_not_know_is_refused(tmp_path: Path) -> None:
    """Whoever holds the device CA's key still has to be in the table."""
    async with secure_fleet(tmp_path) as fleet:
        device = await enrolled(fleet, tmp_path)
        pki = fleet.manager.home.pki
        authority = load_authority(pki.device_ca, pki.device_ca_key)
        key_pem = device.identity.key_pem
        key = requested_key(request(parse_key(key_pem), "cam-1"))
        forged = issue_to_device(authority, NAME, key, time.time(), DAY_S)
        chain = certificate_pem(forged) + authority.pem
        with pytest.raises(EnrolmentRefusedError, match="did not give cam-1 this certificate"):
            await device.speak(TlsMaterial(fleet.server_ca, key_pem, chain))
        await device.speak()
        await device.close()


async def test_a_certificate_of_another_authority_does_not_get_in(tmp_path: Path) -> None:
    async with secure_fleet(tmp_path) as fleet:
        device = await enrolled(fleet, tmp_path)
        authority = make_authority("lab device CA", time.time() - DAY_S, 10 * DAY_S)
        key_pem = device.identity.key_pem
        key = requested_key(request(parse_key(key_pem), "cam-1"))
        forged = certificate_pem(issue_to_device(authority, NAME, key, time.time(), DAY_S))
        with pytest.raises(LinkError, match="UNAVAILABLE"):
            await device.speak(TlsMaterial(fleet.server_ca, key_pem, forged + authority.pem))
        await device.speak()
        await device.close()


async def test_the_fleet_managers_own_certificate_is_no_devices(tmp_path: Path) -> None:
    """It is signed by the device CA, for brokers: it must not open the service for devices."""
    async with secure_fleet(tmp_path) as fleet:
        device = await enrolled(fleet, tmp_path)
        pki = fleet.manager.home.pki
        shown = TlsMaterial(fleet.server_ca, pki.manager_key.read_bytes(), pki.manager.read_bytes())
        with pytest.raises(EnrolmentRefusedError, match="needs a device's certificate"):
            await device.speak(shown)
        await device.close()


async def test_a_stolen_token_is_good_for_its_device_alone(tmp_path: Path) -> None:
    async with secure_fleet(tmp_path) as fleet:
        token = await fleet.token("cam-1")
        thief = EnrollingDevice(fleet, tmp_path / "thief", "cam-2")
        with pytest.raises(EnrolmentRefusedError, match="the token is for device cam-1"):
            await thief.enrol(token)
        owner = EnrollingDevice(fleet, tmp_path / "cam-1", "cam-1")
        await owner.enrol(token)
        late = EnrollingDevice(fleet, tmp_path / "late", "cam-1")
        with pytest.raises(EnrolmentRefusedError, match="the token was used with another key"):
            await late.enrol(token)
        await owner.speak()
        await owner.close()


def test_an_answer_with_another_devices_certificate_changes_nothing(tmp_path: Path) -> None:
    authority = make_authority("ca", time.time() - DAY_S, 10 * DAY_S)
    store = IdentityStore(IdentityPaths(tmp_path / "device"), IdentityDisk())
    store.keep_server(authority.pem, "fleet:1")

    def signed(name: DeviceName) -> bytes:
        key = requested_key(request(store.next_key(), "cam-1"))
        return certificate_pem(issue_to_device(authority, name, key, time.time(), DAY_S))

    store.install(signed(NAME), "cam-1", "camera")
    before = store.read()
    with pytest.raises(EnrolmentRefusedError, match="this is cam-1 of class camera"):
        store.install(signed(DeviceName("lab", "camera", "cam-2")), "cam-1", "camera")
    assert store.open_identity() == before


async def test_a_device_by_the_name_of_the_fleet_manager(tmp_path: Path) -> None:
    """At a broker it would be the fleet manager: it could write packs and sign acknowledgements."""
    async with secure_fleet(tmp_path) as fleet:
        answer = await fleet.http.post(
            "/v1/devices/fleet-manager/token", json={"device_class": "camera"}
        )
        assert answer.status_code == 422
        assert "it is the fleet manager's own name at a broker" in answer.json()["message"]
