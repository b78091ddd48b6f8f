"""Who may call the service for devices: anybody on this machine, or whoever shows a certificate that counts.

Rules kept here: a device is who its certificate says, and a call that speaks of another is refused; nothing about a
certificate is believed but what the database confirms; a call under way ends when its device may not speak any more.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NoReturn, Protocol

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet.errors import ServerError
from fleet.registry.admission import Peer, Refusal
from fleet.registry.identities import Identities
from fleet.registry.streams import OpenStreams
from protos.identity import NAME, DeviceName

__all__ = ["CertificateGate", "Gate", "LoopbackGate", "abort", "abort_refused", "peer_of"]

_CODES: Final[Mapping[Refusal, str]] = {
    Refusal.NO_CERTIFICATE: "UNAUTHENTICATED",
    Refusal.UNKNOWN_CERTIFICATE: "UNAUTHENTICATED",
    Refusal.EXPIRED: "UNAUTHENTICATED",
    Refusal.TOKEN: "UNAUTHENTICATED",
    Refusal.NONCE: "UNAUTHENTICATED",
    Refusal.REQUEST: "INVALID_ARGUMENT",
    Refusal.NOT_DUE: "FAILED_PRECONDITION",
}  # every other: PERMISSION_DENIED


class Gate(Protocol):
    """Asked at the beginning of every call."""

    async def admit(self, context: Any, device_id: str | None) -> None:
        """Return when this call may go on; ``device_id`` is of whom it speaks, None for nobody. Else aborts it."""
        ...

    def stream(self, device_id: str) -> AbstractContextManager[asyncio.Event]:
        """For the length of a long call, entered before ``admit``; the event says that it has to end."""
        ...


class LoopbackGate:
    """Everybody, as long as the name could be one: the service listens on this machine only."""

    def __init__(self) -> None:
        self._streams = OpenStreams()

    async def admit(self, context: Any, device_id: str | None) -> None:
        await _require_name(context, device_id)

    def stream(self, device_id: str) -> AbstractContextManager[asyncio.Event]:
        return self._streams.entered(device_id)


class CertificateGate:
    """Devices that show a certificate which the database knows and nobody has withdrawn."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    async def admit(self, context: Any, device_id: str | None) -> None:
        await _require_name(context, device_id)
        peer = peer_of(context)
        if peer is None:
            await abort_refused(
                context, Refusal.NO_CERTIFICATE,
                "this call needs a device's certificate: run `fleet-agent enroll` on the device",
            )  # fmt: skip
        try:
            verdict = await self._identities.admit(peer, device_id)
        except ServerError as error:
            await abort(context, "UNAVAILABLE", f"who calls could not be checked: {error}")
        if verdict.refusal is not None:
            await abort_refused(context, verdict.refusal, verdict.reason)

    def stream(self, device_id: str) -> AbstractContextManager[asyncio.Event]:
        return self._identities.streams.entered(device_id)


def peer_of(context: Any) -> Peer | None:
    """Who the certificate at the other end says it is; None without one of a device's form."""
    shown = context.auth_context().get("x509_pem_cert")
    return _parse_peer(bytes(shown[0])) if shown else None


@lru_cache(maxsize=4096)
def _parse_peer(pem: bytes) -> Peer | None:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        [uri] = names.get_values_for_type(x509.UniformResourceIdentifier)
        name = DeviceName.parse(uri)
    except (ValueError, x509.ExtensionNotFound):
        return None
    return Peer(name, sha256(certificate.public_bytes(Encoding.DER)).hexdigest())


async def abort_refused(context: Any, refusal: Refusal, reason: str) -> NoReturn:
    """End the call with the status that fits the refusal."""
    await abort(context, _CODES.get(refusal, "PERMISSION_DENIED"), reason)


async def abort(context: Any, code: str, text: str) -> NoReturn:
    """End the call."""
    await context.abort(getattr(grpc.StatusCode, code), text)
    raise AssertionError("abort raises")


async def _require_name(context: Any, device_id: str | None) -> None:
    if device_id is not None and not NAME.fullmatch(device_id):
        await abort(context, "INVALID_ARGUMENT", f"{device_id[:80]!r} is no device id")
