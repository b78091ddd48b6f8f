"""Where devices connect: the port for everything, and with TLS a second one on which they enrol.

Rules kept here: a port is on loopback unless devices show certificates on it; the one on which they enrol shows the
server's certificate and asks for none, because a device has none yet; certificates are read anew when their file
changes, for connections that begin after that.
"""

import os
import socket
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from fleet.api.device_service import DeviceLimits, DeviceService
from fleet.api.enrol_service import EnrolService
from fleet.api.gate import CertificateGate, LoopbackGate
from fleet.api.readable import ReadableRequests
from fleet.api.services import Services
from fleet.config import Listen
from fleet.errors import ConfigError
from fleet.home import PkiPaths
from protos import device_pb2_grpc, enrol_pb2_grpc

__all__ = ["DeviceServer", "SecureListen"]

_HEADROOM_BYTES = 4096
_ENROL_BYTES = 64 * 1024  # one request to enrol is a tenth of that
_ENROL_REQUESTS = 256  # at once


@dataclass(frozen=True, slots=True)
class SecureListen:
    """What TLS needs: certificates, where devices enrol, and who answers them there."""

    paths: PkiPaths
    enrolment: Listen
    service: EnrolService


class DeviceServer:
    """The services behind their ports; without ``secure`` one port, for this machine alone."""

    def __init__(
        self,
        services: Services,
        listen: Listen,
        limits: DeviceLimits | None = None,
        secure: SecureListen | None = None,
    ) -> None:
        self._limits = limits or DeviceLimits()
        self._listen = listen
        self._secure = secure
        gate = CertificateGate(services.identities) if services.identities else LoopbackGate()
        self.service = DeviceService(services, self._limits, gate)
        self._servers: list[Any] = []
        self.enrolment: Listen | None = None
        """Where devices enrol, once it listens."""

    async def start(self) -> Listen:
        """Listen; the address with the port that was taken.

        Raises:
            ConfigError: a port is in use, or a certificate cannot be read.
        """
        server = self._make(self._limits.message_bytes + _HEADROOM_BYTES, self._limits.requests)
        add_device_service: Any = device_pb2_grpc.add_DeviceServiceServicer_to_server
        add_device_service(self.service, server)
        if self._secure is None:
            return await self._open(server, self._listen, None, "[grpc] listen")
        add_enrol_service: Any = enrol_pb2_grpc.add_EnrolServiceServicer_to_server
        add_enrol_service(self._secure.service, server)
        enrolment = self._make(_ENROL_BYTES, _ENROL_REQUESTS)
        add_enrol_service(self._secure.service, enrolment)
        mutual = _credentials(self._secure.paths, mutual=True)
        address = await self._open(server, self._listen, mutual, "[grpc] listen")
        self.enrolment = await self._open(
            enrolment, self._secure.enrolment,
            _credentials(self._secure.paths, mutual=False), "[enrolment] listen",
        )  # fmt: skip
        return address

    async def stop(self) -> None:
        """Let running calls end for a moment, then end them."""
        for server in self._servers:
            await server.stop(self._limits.stop_grace_s)

    def _make(self, message_bytes: int, requests: int) -> Any:
        keep_alive_ms = int(self._limits.keep_alive_s * 1000)
        options = [
            (
                "grpc.so_reuseport",
                0,
            ),  # a second fleet manager on the same port must fail, not share
            ("grpc.max_receive_message_length", message_bytes),
            ("grpc.keepalive_time_ms", keep_alive_ms),
            ("grpc.keepalive_timeout_ms", keep_alive_ms),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
        return grpc.aio.server(
            interceptors=[ReadableRequests()], options=options, maximum_concurrent_rpcs=requests
        )

    async def _open(self, server: Any, listen: Listen, credentials: Any, what: str) -> Listen:
        _require_free(listen, what)  # gRPC would log what fails in its own words, and not say why
        try:
            if credentials is None:
                port = server.add_insecure_port(str(listen))
            else:
                port = server.add_secure_port(str(listen), credentials)
        except RuntimeError as error:
            raise _cannot_listen(listen, what, str(error)) from error
        await server.start()
        self._servers.append(server)
        return Listen(listen.host, port)


def _credentials(paths: PkiPaths, *, mutual: bool) -> Any:
    """The server's certificate, read anew when its file changes; ``mutual``: devices have to show theirs."""

    def read() -> Any:
        try:
            pair = (paths.server_key.read_bytes(), paths.server.read_bytes())
            devices = paths.device_ca.read_bytes() if mutual else None
        except OSError as error:
            raise ConfigError(
                f"cannot read {error.filename}: {error.strerror}. `fleet tls init` makes what is missing"
            ) from error
        return grpc.ssl_server_certificate_configuration([pair], devices)

    def stamp() -> int:
        return paths.server.stat().st_mtime_ns

    seen = stamp()

    def changed() -> Any:
        nonlocal seen
        now = stamp()
        if now == seen:
            return None  # the same as before
        seen = now
        return read()

    return grpc.dynamic_ssl_server_credentials(read(), changed, mutual)


def _require_free(listen: Listen, what: str) -> None:
    """Raises ConfigError when nobody can listen there."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        socket.create_server((listen.host, listen.port), family=family).close()
    except OSError as error:
        raise _cannot_listen(listen, what, os.strerror(error.errno or 0)) from error


def _cannot_listen(listen: Listen, what: str, reason: str) -> ConfigError:
    return ConfigError(
        f"cannot listen on {listen} for devices: {reason}. "
        f"Stop what does, or set {what} to another port"
    )
