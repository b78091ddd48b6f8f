"""The fleet manager's enrolment service, and the first contact with a server that is known by a fingerprint alone.

Rules kept here:
- On first contact the server's chain must hold a CA whose key has the token's fingerprint. Only its certificate is
  taken from that connection; everything after it is checked against this CA by gRPC.
- A status that says no becomes EnrolmentRefusedError, any other failure LinkError.
"""

import contextlib
import hashlib
import socket
import ssl
import sys
from typing import Any, Final

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.adapters.grpc_link import readable
from agent.adapters.tls_channel import Options, TlsMaterial
from agent.errors import LinkError
from agent.identity.certificate import NOT_A_CERTIFICATE
from agent.identity.enrol import EnrolAnswer, EnrolRequest
from agent.identity.errors import EnrolmentRefusedError
from agent.inventory import agent_version
from protos import device_pb2, device_pb2_grpc, enrol_pb2, enrol_pb2_grpc

__all__ = ["EnrolLink", "Renewals", "fetch_server_ca"]

CALL_S: Final = 15.0
_NO: Final = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
)


def fetch_server_ca(address: tuple[str, int], spki_sha256: str, timeout_s: float = CALL_S) -> bytes:
    """The CA certificate (PEM) with this fingerprint, as the server at ``address`` shows it. Blocking.

    Args:
        address: host and port.
        spki_sha256: SHA-256 of the CA's SubjectPublicKeyInfo, hex.
        timeout_s: for connecting and for each answer.

    Raises:
        LinkError: nobody answers there, or not with TLS.
        EnrolmentRefusedError: somebody answers who does not have that CA.
    """
    host, port = address
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # by the fingerprint instead, below
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            chain = _chain(secure)
    except (OSError, ValueError) as error:
        raise LinkError(
            f"no fleet manager with TLS answers at {host}:{port} ({error}): check --server, and that 'fleet serve' "
            f"runs there with [grpc] tls = true"
        ) from error
    for der in chain:
        with contextlib.suppress(*NOT_A_CERTIFICATE):
            certificate = x509.load_der_x509_certificate(der)
            key = certificate.public_key().public_bytes(
                Encoding.DER, PublicFormat.SubjectPublicKeyInfo
            )
            if hashlib.sha256(key).hexdigest() == spki_sha256:
                return certificate.public_bytes(Encoding.PEM)
    raise EnrolmentRefusedError(
        f"{host}:{port} is not the fleet manager that made this token: its certificates are of another authority. "
        f"Check --server; if it is right, somebody stands between"
    )


def _chain(connection: ssl.SSLSocket) -> list[bytes]:
    """What the server showed, DER. Public from Python 3.13 on, there before under the hood; a test guards it."""
    if sys.version_info >= (3, 13):
        return list(connection.get_unverified_chain())
    raw: Any = connection._sslobj  # type: ignore[attr-defined]
    return [
        ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in raw.get_unverified_chain() or ()
    ]


def _failed(call: str, address: str, error: grpc.RpcError) -> LinkError | EnrolmentRefusedError:
    code = error.code() if hasattr(error, "code") else None
    details = (error.details() if hasattr(error, "details") else "") or "no reason given"
    if code in _NO:
        return EnrolmentRefusedError(f"the fleet manager at {address} refused: {details}")
    name = code.name if code is not None else "no status"
    return LinkError(f"{call} at {address} failed ({name}): {details}")


class EnrolLink:
    """Calls without a certificate, each over a connection of its own: they are rare."""

    def __init__(self, address: str, server_ca: bytes, options: Options) -> None:
        self._address = address
        self._material = TlsMaterial(server_ca)
        self._options = options

    async def enrol(self, asked: EnrolRequest) -> EnrolAnswer:
        """Implements agent.identity.enrol.EnrolPort."""
        reply = await self._call(
            "Enrol",
            enrol_pb2.EnrolRequest(
                token=asked.token,
                device_id=asked.device_id,
                device_class=asked.device_class,
                csr=asked.csr,
                identity_key=asked.identity_key,
                proof=asked.proof,
            ),
        )
        if reply.standing == enrol_pb2.STANDING_PENDING:
            return EnrolAnswer(b"", reply.reason, max(1.0, min(reply.retry_after_s, 600.0)))
        return EnrolAnswer(_certified(reply, self._address))

    async def nonce(self, device_id: str) -> bytes:
        """A number to sign."""
        reply = await self._call("Nonce", enrol_pb2.NonceRequest(device_id=device_id))
        return bytes(reply.nonce)

    async def renew_lapsed(self, device_id: str, nonce: bytes, csr: bytes, proof: bytes) -> bytes:
        """The chain of a new certificate."""
        asked = enrol_pb2.RenewLapsedRequest(device_id=device_id, nonce=nonce, csr=csr, proof=proof)
        return _certified(await self._call("RenewLapsed", asked), self._address)

    async def _call(self, name: str, request: Any) -> Any:
        credentials = self._material.credentials()
        async with grpc.aio.secure_channel(
            self._address, credentials, options=self._options
        ) as channel:
            stub: Any = enrol_pb2_grpc.EnrolServiceStub(channel)  # type: ignore[no-untyped-call]
            try:
                reply = await getattr(stub, name)(request, timeout=CALL_S)
            except grpc.RpcError as error:
                raise _failed(name, self._address, error) from error
        return readable(reply, name, self._address)


class Renewals:
    """Implements agent.identity.keeper.RenewalPort: over the device's own channel, else over ``lapsed``."""

    def __init__(self, channel: Any, address: str, lapsed: EnrolLink | None) -> None:
        """``lapsed`` None: where this device enrolled is not known."""
        self.channel = channel
        self._address = address
        self._lapsed = lapsed
        self._enrol: Any = enrol_pb2_grpc.EnrolServiceStub(channel)  # type: ignore[no-untyped-call]
        self._device: Any = device_pb2_grpc.DeviceServiceStub(channel)  # type: ignore[no-untyped-call]

    async def renew(self, csr: bytes) -> bytes:
        try:
            reply = await self._enrol.Renew(enrol_pb2.RenewRequest(csr=csr), timeout=CALL_S)
        except grpc.RpcError as error:
            raise _failed("Renew", self._address, error) from error
        return _certified(readable(reply, "Renew", self._address), self._address)

    async def nonce(self, device_id: str) -> bytes:
        return await self._known().nonce(device_id)

    async def renew_lapsed(self, device_id: str, nonce: bytes, csr: bytes, proof: bytes) -> bytes:
        return await self._known().renew_lapsed(device_id, nonce, csr, proof)

    async def confirm(self, device_id: str) -> None:
        hello = device_pb2.HelloRequest(device_id=device_id, agent_version=agent_version())
        try:
            await self._device.Hello(hello, timeout=CALL_S)
        except grpc.RpcError as error:
            raise _failed("Hello", self._address, error) from error

    def _known(self) -> EnrolLink:
        if self._lapsed is None:
            raise EnrolmentRefusedError(
                "where this device enrolled is not known any more: run `fleet-agent enroll` with a new token"
            )
        return self._lapsed


def _certified(reply: Any, address: str) -> bytes:
    if reply.standing != enrol_pb2.STANDING_ACCEPTED or not reply.chain:
        raise LinkError(
            f"the fleet manager at {address} answered without a certificate: {reply.reason}"
        )
    return bytes(reply.chain)
