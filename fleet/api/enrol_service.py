"""The service by which devices come by certificates.

Rules kept here: strangers are counted before anything of theirs is looked at; every message is small; a refusal says
what to do, and no more than the holder of the token or certificate knows already.
"""

import time
from collections.abc import Callable
from typing import Any, Final

from fleet.api.gate import abort, abort_refused, peer_of
from fleet.errors import RequestError, ServerError
from fleet.registry.admission import Refusal
from fleet.registry.enrolment import Answer
from fleet.registry.identities import Identities
from fleet.registry.rate import RateLimit
from fleet.registry.settings import EnrolmentConfig
from fleet.registry.standing import Standing
from protos import enrol_pb2, enrol_pb2_grpc

__all__ = ["EnrolService"]

ASK_AGAIN_S: Final = 10
MAX_SECRET: Final = 200


class EnrolService(enrol_pb2_grpc.EnrolServiceServicer):
    """The handlers."""

    def __init__(
        self,
        identities: Identities,
        settings: EnrolmentConfig,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identities = identities
        self._rate = RateLimit(settings.per_minute, settings.per_peer_per_minute, monotonic_s)

    async def Enrol(  # noqa: N802
        self, request: enrol_pb2.EnrolRequest, context: Any
    ) -> enrol_pb2.EnrolReply:
        """A certificate for a token."""
        await self._count(context)
        return await self._answer(
            context,
            self._identities.enrol(
                (request.device_id, request.device_class),
                request.token[:MAX_SECRET],
                request.csr,
                (request.identity_key, request.proof),
            ),
        )

    async def Renew(  # noqa: N802
        self, request: enrol_pb2.RenewRequest, context: Any
    ) -> enrol_pb2.EnrolReply:
        """The next certificate."""
        peer = peer_of(context)
        if peer is None:
            await abort_refused(
                context, Refusal.NO_CERTIFICATE,
                "a renewal needs the certificate in use: it is asked for at [grpc] listen",
            )  # fmt: skip
        return await self._answer(context, self._identities.renew(peer, request.csr))

    async def Nonce(  # noqa: N802
        self, request: enrol_pb2.NonceRequest, context: Any
    ) -> enrol_pb2.NonceReply:
        """A number to sign."""
        await self._count(context)
        try:
            return enrol_pb2.NonceReply(nonce=self._identities.nonce(request.device_id))
        except RequestError as error:
            await abort(context, "INVALID_ARGUMENT", str(error))

    async def RenewLapsed(  # noqa: N802
        self, request: enrol_pb2.RenewLapsedRequest, context: Any
    ) -> enrol_pb2.EnrolReply:
        """A certificate for a device whose own has expired."""
        await self._count(context)
        return await self._answer(
            context,
            self._identities.renew_lapsed(
                request.device_id, request.nonce, request.csr, request.proof
            ),
        )

    async def _count(self, context: Any) -> None:
        address = str(context.peer()).rpartition(":")[0]  # without the port
        if not self._rate.allows(address):
            await abort(context, "RESOURCE_EXHAUSTED", "too many requests to enrol: wait a minute")

    async def _answer(self, context: Any, work: Any) -> enrol_pb2.EnrolReply:
        try:
            answer: Answer = await work
        except RequestError as error:
            await abort(context, "INVALID_ARGUMENT", str(error))
        except ServerError as error:
            await abort(context, "UNAVAILABLE", f"ask again: {error}")
        if answer.refusal is not None:
            await abort_refused(context, answer.refusal, answer.reason)
        if answer.standing is Standing.PENDING:
            return enrol_pb2.EnrolReply(
                standing=enrol_pb2.STANDING_PENDING,
                reason=answer.reason,
                retry_after_s=ASK_AGAIN_S,
            )
        return enrol_pb2.EnrolReply(standing=enrol_pb2.STANDING_ACCEPTED, chain=answer.chain)
