"""A real Mosquitto with the configuration that the project generates: mutual TLS and topic rules."""

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agent.adapters.credentials import DeviceCredentials
from agent.state_dir import IdentityPaths
from fleet.home import PkiPaths
from fleet.messaging import MqttClient
from fleet.messaging.credentials import ManagerCredentials
from fleet.messaging.mosquitto import ACL_FILE
from tests.support.certificates_broker import Certificates, write_broker_files
from tests.support.daemon import Daemon, free_port, wait_until
from tests.support.mosquitto import PROGRAM, require_mosquitto

FLEET = "lab"


@dataclass(slots=True)
class SecureMosquitto:
    """``folder`` holds everything: the fleet's certificates, the devices' and the broker's files.

    ``lying``: it lets everybody read and write everything, as a broker that somebody took over would.
    """

    folder: Path
    fleet: str = FLEET
    lying: bool = False
    port: int = field(default_factory=free_port)
    certificates: Certificates = field(init=False)
    daemon: Daemon = field(init=False)

    def __post_init__(self) -> None:
        self.certificates = Certificates(PkiPaths(self.folder / "pki"))
        self.daemon = Daemon(self.folder / "mosquitto.log")

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def start(self) -> None:
        require_mosquitto()
        assert PROGRAM is not None
        if not self.certificates.pki.device_ca.exists():
            self.certificates.write()
        config = write_broker_files(
            self.folder / "broker", self.certificates.pki, self.fleet, self.port
        )
        if self.lying:
            config.with_name(ACL_FILE).write_text("pattern readwrite #\n", encoding="utf-8")
        self.daemon.start([PROGRAM, "-c", str(config)])
        wait_until(lambda: self._log_count(" running") > 0, "mosquitto runs")

    def _log_count(self, text: str) -> int:
        self.daemon.require_alive()
        return self.daemon.log.read_text(errors="replace").count(text)

    def reload(self) -> None:
        """SIGHUP, and wait until it says that it has read its configuration again."""
        before = self._log_count("Reloading config")
        self.daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self._log_count("Reloading config") > before, "mosquitto reloads")

    def stop(self) -> None:
        self.daemon.kill()

    # --- who connects -----------------------------------------------------------------------------

    def identity(self, device_id: str) -> IdentityPaths:
        return IdentityPaths(self.folder / "devices" / device_id)

    def enrol(self, device_id: str) -> DeviceCredentials:
        self.certificates.enrol(device_id, self.identity(device_id))
        return self.credentials(device_id)

    def credentials(self, device_id: str) -> DeviceCredentials:
        return DeviceCredentials(self.identity(device_id), self.fleet, device_id)

    def tls(self, device_id: str) -> ssl.SSLContext:
        """As this device, enrolled when it is not yet."""
        if not self.identity(device_id).certificate.exists():
            self.enrol(device_id)
        return self.credentials(device_id).load().tls

    def manager(self) -> ManagerCredentials:
        return ManagerCredentials(self.certificates.pki, self.fleet)

    async def connect(
        self, name: str, tls: ssl.SSLContext | None = None, **more: object
    ) -> MqttClient:
        """A client as a device (or with ``tls`` of one's own), whatever client id it says."""
        context = tls or self.tls(name)
        return await MqttClient.connect(*self.address, name, tls=context, **more)  # type: ignore[arg-type]


@asynccontextmanager
async def as_manager(broker: SecureMosquitto) -> AsyncIterator[MqttClient]:
    """A client that is the fleet manager."""
    client = await broker.connect("fleet-manager", broker.manager().load().tls)
    try:
        yield client
    finally:
        await client.close()


async def take(client: MqttClient, limit_s: float = 90.0) -> tuple[str, bytes]:
    """Topic and payload of the next message."""
    async with asyncio.timeout(limit_s):
        message = await anext(client.messages())
    return message.topic, message.payload
