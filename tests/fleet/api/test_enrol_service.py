"""Enrolment, renewal and revocation between the agent's own code and a running fleet manager, over real TLS."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from agent.adapters.clock import SystemClock
from agent.adapters.tls_channel import TlsMaterial
from agent.errors import LinkError
from agent.identity import IdentityInUse, IdentityKeeper
from agent.identity.certificate import parse_key, public_der, request, sign
from agent.identity.errors import EnrolmentRefusedError
from fleet.registry.pki import init_pki
from protos import device_pb2, enrol_pb2, enrol_pb2_grpc
from protos.identity import enrol_message
from tests.support.identity import (
    EnrollingDevice,
    GaveUpError,
    SecureFleet,
    secure_fleet,
    some_request,
)

DAY_S = 86400.0


@asynccontextmanager
async def device_of(
    fleet: SecureFleet, folder: Path, device_id: str = "cam-1", *, enrolled: bool = True
) -> AsyncIterator[EnrollingDevice]:
    device = EnrollingDevice(fleet, folder / device_id, device_id)
    try:
        if enrolled:
            await device.enrol(await fleet.token(device_id))
            await device.speak()
        yield device
    finally:
        await device.close()


def revoked_serials(fleet: SecureFleet) -> set[str]:
    raw = fleet.manager.home.pki.revoked.read_bytes()
    return {f"{one.serial_number:x}" for one in x509.load_pem_x509_crl(raw)}


async def refused(work: Any, message: str) -> str:
    with pytest.raises(EnrolmentRefusedError, match=message) as caught:
        await work
    return str(caught.value)


async def test_a_device_enrols_and_speaks_for_itself_alone(tmp_path: Path) -> None:
    async with secure_fleet(tmp_path) as fleet:
        token = await fleet.token(labels={"site": "north"})
        async with device_of(fleet, tmp_path, enrolled=False) as device:
            certificate = await device.enrol(token)
            assert certificate.name.uri == "spiffe://lab/class/camera/device/cam-1"
            assert (await fleet.identity())["certificate"]["state"] == "issued"
            again = await device.enrol(
                token
            )  # another key for the same device: its certificate was never used
            assert again.serial != certificate.serial
            await device.speak()
            identity = await fleet.identity()
            assert identity["standing"] == "accepted"
            assert identity["certificate"]["serial"] == again.serial
            assert identity["certificate"]["state"] == "current"
            row = (await fleet.http.get("/v1/devices/cam-1")).json()
            assert (row["device_class"], row["labels"]) == ("camera", {"site": "north"})
            await refused(device.enrol(token), "token is not known, or was used")
            stub, channel = fleet.stub(device.material)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Hello(device_pb2.HelloRequest(device_id="cam-2"))
            await channel.close()
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "the certificate is of device cam-1, the call speaks of 'cam-2'" in (
                caught.value.details() or ""
            )


async def test_without_a_certificate_there_is_nothing_but_enrolment(tmp_path: Path) -> None:
    async with secure_fleet(tmp_path) as fleet:
        stub, channel = fleet.stub(TlsMaterial(fleet.server_ca))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Hello(device_pb2.HelloRequest(device_id="cam-1"))
        await channel.close()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        credentials = TlsMaterial(fleet.server_ca).credentials()
        async with grpc.aio.secure_channel(fleet.enrolment, credentials) as channel:
            make: Any = enrol_pb2_grpc.EnrolServiceStub
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await make(channel).Renew(enrol_pb2.RenewRequest(csr=some_request()))
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_who_may_not_enrol(tmp_path: Path) -> None:
    async with secure_fleet(tmp_path) as fleet:
        token = await fleet.token()
        other_class = EnrollingDevice(fleet, tmp_path / "class", device_class="door")
        await refused(
            other_class.enrol(token),
            "for device cam-1 of class camera, not for cam-1 of class door",
        )
        other_id = EnrollingDevice(fleet, tmp_path / "id", "cam-2")
        await refused(other_id.enrol(token), "for device cam-1 of class camera, not for cam-2")
        made_up = token.replace("muster1.", "muster1.AAAA")
        await refused(EnrollingDevice(fleet, tmp_path / "x").enrol(made_up), "is not known")
        first = EnrollingDevice(fleet, tmp_path / "first")
        await first.enrol(token)
        thief = EnrollingDevice(fleet, tmp_path / "thief")
        await refused(thief.enrol(token), "the token was used with another key")
        late = await fleet.token("cam-3", ttl_s=60)
        fleet.identities.now_s = lambda: time.time() + 61
        await refused(
            EnrollingDevice(fleet, tmp_path / "late", "cam-3").enrol(late), "the token has expired"
        )


async def test_requests_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    async with secure_fleet(tmp_path) as fleet:
        device = EnrollingDevice(fleet, tmp_path / "cam-1")
        identity, key = device.store.identity_key(), device.store.next_key()
        csr = request(key, "another-name-which-is-ignored")
        der, proof = public_der(identity), sign(identity, enrol_message("cam-1", csr))
        good = {
            "token": "t", "device_id": "cam-1", "device_class": "camera", "csr": csr,
            "identity_key": der, "proof": proof,
        }  # fmt: skip
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import rsa
        from cryptography.hazmat.primitives.serialization import Encoding

        foreign = rsa.generate_private_key(65537, 2048)
        name = x509.Name([])
        of_rsa = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(name)
            .sign(foreign, hashes.SHA256())
        )
        broken = bytearray(csr)
        broken[-1] ^= 1
        wrong = (
            ({"csr": b"x"}, "is not PKCS #10 in DER"),
            ({"csr": b"x" * 5000}, "has 5000 bytes, at most 4096"),
            ({"csr": of_rsa.public_bytes(Encoding.DER)}, "is not on the curve P-256"),
            ({"csr": bytes(broken)}, "signing request is not"),
            ({"identity_key": b"x"}, "the identity key is no public key"),
            ({"proof": sign(key, enrol_message("cam-1", csr))}, "not signed by the identity key"),
            (
                {"proof": sign(identity, enrol_message("cam-2", csr))},
                "not signed by the identity key",
            ),
            ({"device_id": "../x"}, "device id '../x' is not allowed"),
            ({"device_class": ""}, "device class '' is not allowed"),
        )
        credentials = TlsMaterial(fleet.server_ca).credentials()
        async with grpc.aio.secure_channel(fleet.enrolment, credentials) as channel:
            make: Any = enrol_pb2_grpc.EnrolServiceStub
            stub = make(channel)
            for change, message in wrong:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Enrol(enrol_pb2.EnrolRequest(**(good | change)))
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, change
                assert message in (caught.value.details() or "")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Enrol(enrol_pb2.EnrolRequest(**good))  # all but the token is right
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_an_operator_accepts_one_and_turns_another_away(tmp_path: Path) -> None:
    async with secure_fleet(tmp_path, accept="manual") as fleet:
        token = await fleet.token()
        async with device_of(fleet, tmp_path, enrolled=False) as device:
            for _ in range(2):
                with pytest.raises(GaveUpError, match="an operator has to accept this device"):
                    await device.enrol(token)
            assert (await fleet.identity())["standing"] == "pending"
            thief = EnrollingDevice(fleet, tmp_path / "thief")
            await refused(thief.enrol(await fleet.token()), "has asked with another key")
            # The operator's own doing: the second token took the place of the first.
            await refused(device.enrol(token), "token is not known")
            token = await fleet.token()
            assert (await fleet.decide("cam-1", "accept")).json()["standing"] == "accepted"
            await device.enrol(token)
            await device.speak()
            assert (await fleet.decide("cam-1", "accept")).status_code == 409
            assert (await fleet.decide("cam-9", "accept")).status_code == 404
        second = EnrollingDevice(fleet, tmp_path / "cam-2", "cam-2")
        token = await fleet.token("cam-2")
        with pytest.raises(GaveUpError):
            await second.enrol(token)
        await fleet.decide("cam-2", "reject", "not ours")
        await refused(second.enrol(token), "token is not known")
        assert (await fleet.identity("cam-2"))["reason"] == "not ours"


async def test_the_old_certificate_works_until_the_new_one_was_used(tmp_path: Path) -> None:
    async with secure_fleet(tmp_path) as fleet, device_of(fleet, tmp_path) as device:
        old = device.material
        renewed = await device.renew()
        await device.speak(old)  # the answer may as well have been lost
        assert (await fleet.identity())["certificate"]["serial"] != renewed.serial
        await device.speak()
        assert (await fleet.identity())["certificate"]["serial"] == renewed.serial
        await device.speak(old)  # a call that was under way
        later = time.time() + 61
        fleet.identities.now_s = lambda: later
        await refused(device.speak(old), "was left behind: a newer one is in use")
        await fleet.identities.write_revocations()
        assert len(revoked_serials(fleet)) == 1


async def test_a_lost_answer_is_given_again(tmp_path: Path) -> None:
    async with secure_fleet(tmp_path) as fleet, device_of(fleet, tmp_path) as device:
        csr = request(device.store.next_key(), "cam-1")
        first = await device.renewals().renew(csr)
        assert await device.renewals().renew(request(device.store.next_key(), "cam-1")) == first
        same_key = request(parse_key(device.identity.key_pem), "cam-1")
        await refused(device.renewals().renew(same_key), "a renewal needs a new key")


async def test_an_expired_certificate_is_renewed_with_the_identity_key(tmp_path: Path) -> None:
    async with secure_fleet(tmp_path) as fleet:
        fleet.identities.now_s = lambda: time.time() - 8 * DAY_S
        async with device_of(fleet, tmp_path, enrolled=False) as device:
            await device.enrol(await fleet.token())
            with pytest.raises(LinkError, match="UNAVAILABLE"):
                await device.speak()  # TLS refuses it
            renewals, identity = device.renewals(), device.store.identity_key()
            csr = request(device.store.next_key(), "cam-1")

            from protos.identity import lapsed_message

            async def lapsed(nonce: bytes, key: Any = identity) -> bytes:
                proof = sign(key, lapsed_message("cam-1", nonce, csr))
                return await renewals.renew_lapsed("cam-1", nonce, csr, proof)

            fleet.identities.now_s = time.time
            await refused(lapsed(b"made up"), "the nonce is not known any more")
            other = device.store.next_key()
            await refused(
                lapsed(await renewals.nonce("cam-1"), other), "not signed by the identity"
            )
            await refused(lapsed(await renewals.nonce("cam-2")), "the nonce is not known any more")
            nonce = await renewals.nonce("cam-1")
            chain = await lapsed(nonce)
            await refused(lapsed(nonce), "the nonce is not known any more")  # good once
            device.store.install(chain, "cam-1", "camera")
            await device.speak()
            csr = request(device.store.next_key(), "cam-1")
            await refused(lapsed(await renewals.nonce("cam-1")), "has not expired: renew with it")


async def test_a_revoked_device_is_cut_off_and_may_come_back_with_a_new_token(
    tmp_path: Path,
) -> None:
    async with secure_fleet(tmp_path) as fleet, device_of(fleet, tmp_path) as device:
        stub, channel = fleet.stub(device.material)
        watch = stub.Watch(device_pb2.WatchRequest(device_id="cam-1"))
        assert (await watch.read()).pack
        assert (await fleet.http.post(
            "/v1/devices/cam-1/token", json={"device_class": "camera"}
        )).status_code == 409  # fmt: skip
        answer = await fleet.decide("cam-1", "revoke", "stolen")
        assert answer.json() == {"device_id": "cam-1", "standing": "revoked"}
        async with asyncio.timeout(60):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await watch.read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        await channel.close()
        assert revoked_serials(fleet) == {device.identity.certificate.serial}
        await refused(
            device.speak(), r"device cam-1 was revoked \(stolen\): enrol it with a new token"
        )
        await refused(device.renew(), "was revoked")
        nonce = await device.renewals().nonce("cam-1")
        csr = some_request()
        from protos.identity import lapsed_message

        proof = sign(device.store.identity_key(), lapsed_message("cam-1", nonce, csr))
        await refused(device.renewals().renew_lapsed("cam-1", nonce, csr, proof), "is revoked")
        identity = await fleet.identity()
        assert (identity["standing"], identity["reason"]) == ("revoked", "stolen")
        assert [one["event"] for one in identity["events"]] == ["revoked", "enrolled"]
        await device.enrol(await fleet.token())
        await device.speak()
        assert (await fleet.identity())["standing"] == "accepted"


async def test_who_asks_too_often_waits(tmp_path: Path) -> None:
    async with secure_fleet(tmp_path, per_peer_per_minute=3) as fleet:
        credentials = TlsMaterial(fleet.server_ca).credentials()
        async with grpc.aio.secure_channel(fleet.enrolment, credentials) as channel:
            make: Any = enrol_pb2_grpc.EnrolServiceStub
            stub = make(channel)
            for _ in range(3):
                await stub.Nonce(enrol_pb2.NonceRequest(device_id="cam-1"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Nonce(enrol_pb2.NonceRequest(device_id="cam-1"))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def shown_names(address: str) -> set[str]:
    """Host names in the certificate that a server shows now."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), 60) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        shown = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(names.get_values_for_type(x509.DNSName))


async def test_a_renewed_server_certificate_is_shown_to_who_connects_next(tmp_path: Path) -> None:
    async with secure_fleet(tmp_path) as fleet, device_of(fleet, tmp_path) as device:
        assert await asyncio.to_thread(shown_names, fleet.enrolment) == {"localhost"}
        init_pki(fleet.manager.home.pki, "lab", ["fleet.example.com"], time.time())
        names = await asyncio.to_thread(shown_names, fleet.enrolment)
        assert names == {"localhost", "fleet.example.com"}
        await device.speak()


async def test_calls_under_way_survive_a_renewal_and_later_ones_use_it(tmp_path: Path) -> None:
    async with secure_fleet(tmp_path) as fleet, device_of(fleet, tmp_path) as device:
        stub, channel = fleet.stub(device.material)
        watch = stub.Watch(device_pb2.WatchRequest(device_id="cam-1"))
        await watch.read()
        renewed = await device.renew()
        await channel.renew(device.material)
        await stub.Hello(device_pb2.HelloRequest(device_id="cam-1"))
        assert (await fleet.identity())["certificate"]["serial"] == renewed.serial
        fleet.manager.feed.set(b"another pack")
        assert (await watch.read()).pack == b"another pack"
        watch.cancel()
        await channel.close()


async def test_a_device_that_was_off_for_too_long_mends_itself(tmp_path: Path) -> None:
    async with secure_fleet(tmp_path) as fleet:
        fleet.identities.now_s = lambda: time.time() - 8 * DAY_S
        async with device_of(fleet, tmp_path, enrolled=False) as device:
            await device.enrol(await fleet.token())
            fleet.identities.now_s = time.time
            lapsed, renewals = device.identity, device.renewals()

            async def changed(_renewed: IdentityInUse) -> None:
                await renewals.channel.renew(device.material)

            keeper = IdentityKeeper(device.store, lapsed, renewals, SystemClock(), changed)
            assert await keeper.step() == 0.0
            assert keeper.identity.certificate.serial != lapsed.certificate.serial
            assert (await fleet.identity())["certificate"]["state"] == "current"
