"""Enrolment: from a token to a certificate on the disk. Run again after any stop, it goes on from what is there.

Rules kept here: keys are made here and never leave; what is in use stays until there is something to put in its place;
pending is waited for.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from agent.identity.certificate import DeviceCertificate, public_der, request, sign
from agent.identity.store import IdentityStore
from protos.identity import enrol_message

__all__ = ["EnrolAnswer", "EnrolPort", "EnrolRequest", "enrol"]


@dataclass(frozen=True, slots=True)
class EnrolRequest:
    """What a device says to enrol. ``token``: the secret part."""

    token: str
    device_id: str
    device_class: str
    csr: bytes
    identity_key: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class EnrolAnswer:
    """``chain`` empty: an operator has to accept the device; ask again after ``retry_after_s``."""

    chain: bytes
    reason: str = ""
    retry_after_s: float = 10.0


class EnrolPort(Protocol):
    async def enrol(self, asked: EnrolRequest, /) -> EnrolAnswer:
        """Raises LinkError, EnrolmentRefusedError."""
        ...


async def enrol(
    store: IdentityStore,
    port: EnrolPort,
    who: tuple[str, str, str],
    pending: Callable[[EnrolAnswer], Awaitable[None]],
) -> DeviceCertificate:
    """Enrol this device.

    Args:
        store: where keys and certificate lie; the server's CA is there already.
        port: the fleet manager.
        who: the token's secret, device id, device class.
        pending: called while an operator has to accept the device; waits, or raises to give up.

    Raises:
        EnrolmentRefusedError: the fleet manager said no. LinkError: it cannot be reached.
        DeviceError: the disk failed.
    """
    token, device_id, device_class = who
    store.open_identity()
    identity = store.identity_key()
    csr = request(store.next_key(), device_id)
    proof = sign(identity, enrol_message(device_id, csr))
    asked = EnrolRequest(token, device_id, device_class, csr, public_der(identity), proof)
    while True:
        answer = await port.enrol(asked)
        if answer.chain:
            return store.install(answer.chain, device_id, device_class)
        await pending(answer)
