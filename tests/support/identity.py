"""A fleet manager whose devices show certificates, and devices that enrol with it, all in this process.

The devices are the agent's own code over real TLS on loopback; only their loops are left out.
"""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from agent.adapters.enrol_link import EnrolLink, Renewals, fetch_server_ca
from agent.adapters.grpc_link import channel_options
from agent.adapters.identity_disk import IdentityDisk
from agent.adapters.tls_channel import RenewableChannel, TlsMaterial
from agent.identity.certificate import DeviceCertificate, new_key, parse_key, request
from agent.identity.enrol import EnrolAnswer, enrol
from agent.identity.store import IdentityInUse, IdentityStore
from agent.state_dir import IdentityPaths
from fleet.cli.init import make_home
from fleet.config import EnrolmentConfig, GrpcConfig
from fleet.daemon import FleetManager, running
from fleet.home import Home
from fleet.operators.folder import local_token
from fleet.registry.identities import Identities
from fleet.registry.pki import init_pki
from protos import device_pb2_grpc
from protos.identity import Token
from tests.support.ephemeral import CONFIG

OPTIONS = channel_options(None)


class SecureFleet:
    """A running fleet manager named "lab"; see ``secure_fleet``."""

    def __init__(self, manager: FleetManager, http: httpx.AsyncClient) -> None:
        assert manager.addresses is not None
        assert manager.identities is not None
        self.manager = manager
        self.identities: Identities = manager.identities
        self.http = http
        self.grpc = str(manager.addresses.grpc)
        self.enrolment = str(manager.addresses.enrolment)

    @property
    def server_ca(self) -> bytes:
        return self.manager.home.pki.server_ca.read_bytes()

    async def token(self, device_id: str = "cam-1", **body: Any) -> str:
        """The text of a new token."""
        wanted = {"device_class": "camera", **body}
        answer = await self.http.post(f"/v1/devices/{device_id}/token", json=wanted)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["token"])

    async def decide(self, device_id: str, what: str, reason: str = "") -> httpx.Response:
        return await self.http.post(f"/v1/devices/{device_id}/{what}", json={"reason": reason})

    async def identity(self, device_id: str = "cam-1") -> Any:
        return (await self.http.get(f"/v1/devices/{device_id}")).json()["identity"]

    def stub(self, material: TlsMaterial) -> tuple[Any, RenewableChannel]:
        """The device service with this certificate; close the channel."""
        channel = RenewableChannel(self.grpc, OPTIONS, material)
        make: Any = device_pb2_grpc.DeviceServiceStub
        return make(channel), channel


@asynccontextmanager
async def secure_fleet(folder: Path, **enrolment: Any) -> AsyncIterator[SecureFleet]:
    """A fleet manager in ``folder``, for the length of the block."""
    home = Home(folder / "fleet")
    make_home(home, "lab", time.time())
    init_pki(home.pki, "lab", (), time.time())
    config = dataclasses.replace(
        CONFIG,
        grpc=GrpcConfig("127.0.0.1:0", tls=True),
        enrolment=EnrolmentConfig(listen="127.0.0.1:0", **enrolment),
    )
    async with running(home, config) as manager:
        assert manager.addresses is not None
        base = manager.addresses.api
        headers = {"Authorization": f"Bearer {local_token(home)}"}
        async with httpx.AsyncClient(base_url=base, timeout=90, headers=headers) as http:
            yield SecureFleet(manager, http)


class GaveUpError(Exception):
    """The device does not wait to be accepted."""


class EnrollingDevice:
    """One device: keys in a folder, and what it asks of the fleet manager."""

    def __init__(
        self,
        fleet: SecureFleet,
        folder: Path,
        device_id: str = "cam-1",
        device_class: str = "camera",
    ) -> None:
        self.fleet = fleet
        self.id = device_id
        self.device_class = device_class
        self.paths = IdentityPaths(folder)
        self.store = IdentityStore(self.paths, IdentityDisk())
        self._channels: list[RenewableChannel] = []

    async def enrol(self, token_text: str) -> DeviceCertificate:
        """As ``fleet-agent enroll`` does, but not waiting: GaveUpError when an operator has to accept."""
        token = Token.parse(token_text)
        host, _, port = self.fleet.enrolment.rpartition(":")
        server_ca = await asyncio.to_thread(fetch_server_ca, (host, int(port)), token.server_sha256)
        self.store.keep_server(server_ca, self.fleet.enrolment)

        async def pending(answer: EnrolAnswer) -> None:
            raise GaveUpError(answer.reason)

        link = EnrolLink(self.fleet.enrolment, server_ca, OPTIONS)
        return await enrol(self.store, link, (token.secret, self.id, self.device_class), pending)

    @property
    def identity(self) -> IdentityInUse:
        found = self.store.read()
        assert found is not None
        return found

    @property
    def material(self) -> TlsMaterial:
        found = self.identity
        return TlsMaterial(found.server_ca, found.key_pem, found.certificate.pem)

    def renewals(self, material: TlsMaterial | None = None) -> Renewals:
        """What renews, with the certificate in use or another."""
        channel = RenewableChannel(self.fleet.grpc, OPTIONS, material or self.material)
        self._channels.append(channel)
        lapsed = EnrolLink(self.fleet.enrolment, self.fleet.server_ca, OPTIONS)
        return Renewals(channel, self.fleet.grpc, lapsed)

    async def speak(self, material: TlsMaterial | None = None) -> None:
        """One call. Raises EnrolmentRefusedError, LinkError."""
        await self.renewals(material).confirm(self.id)

    async def renew(self) -> DeviceCertificate:
        """The next certificate, installed and not used yet."""
        chain = await self.renewals().renew(request(self.store.next_key(), self.id))
        return self.store.install(chain, self.id, self.device_class)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


def some_request(device_id: str = "cam-1") -> bytes:
    """A signing request for a key that nobody keeps."""
    return request(parse_key(new_key()), device_id)
