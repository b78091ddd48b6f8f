"""The one task that keeps this device's certificate good.

Rules kept here:
- A new key for each certificate. It is on the disk before it is asked for, so a lost answer or a power cut changes
  nothing: the same key is asked for again, and the old certificate works until the new one was used.
- The new certificate is used at once, so that the one before is left behind on purpose and not at some time.
- Where a renewal fails and the certificate may have expired by the server's clock, the identity key is tried as well.
- Nothing here ends the agent: it serves what it has, however long nobody renews anything.
"""

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from agent.errors import AgentError, LinkError
from agent.identity.certificate import request, sign
from agent.identity.errors import EnrolmentRefusedError
from agent.identity.schedule import Need, plan
from agent.identity.store import IdentityInUse, IdentityStore
from agent.ports import Clock
from protos.identity import lapsed_message

__all__ = ["IdentityKeeper", "KeeperLimits", "RenewalPort"]

log = logging.getLogger(__name__)


class RenewalPort(Protocol):
    """The fleet manager, as this needs it. All raise LinkError or EnrolmentRefusedError."""

    async def renew(self, csr: bytes) -> bytes:
        """The next certificate's chain, asked for with the one in use."""
        ...

    async def nonce(self, device_id: str) -> bytes: ...

    async def renew_lapsed(self, device_id: str, nonce: bytes, csr: bytes, proof: bytes) -> bytes:
        """The next certificate's chain, asked for with the identity key."""
        ...

    async def confirm(self, device_id: str) -> None:
        """Use the certificate in use once."""
        ...


@dataclass(frozen=True, slots=True)
class KeeperLimits:
    """``look_s``: the longest wait, so that a clock that jumps is noticed. ``refused_s``: after a no."""

    look_s: float = 3600.0
    retry_first_s: float = 30.0
    retry_most_s: float = 3600.0
    refused_s: float = 3600.0


class IdentityKeeper:
    """Renews in time, for ever. ``changed`` is called with each new identity, before it is used."""

    def __init__(  # noqa: PLR0913, PLR0917 (what it works with)
        self,
        store: IdentityStore,
        identity: IdentityInUse,
        port: RenewalPort,
        clock: Clock,
        changed: Callable[[IdentityInUse], Awaitable[None]],
        limits: KeeperLimits | None = None,
        randomness: random.Random | None = None,
    ) -> None:
        self._store = store
        self._identity = identity
        self._port = port
        self._clock = clock
        self._changed = changed
        self._limits = limits or KeeperLimits()
        self._random = randomness or random.Random()  # noqa: S311 (spreads load, guards nothing)
        self._jitter = self._random.random()
        self._failures = 0

    @property
    def identity(self) -> IdentityInUse:
        """The identity in use."""
        return self._identity

    @property
    def not_before_s(self) -> float:
        """A time that is known to be past, seconds since the epoch: the fleet manager signed it."""
        return self._identity.certificate.not_before_s

    async def run(self) -> None:
        """Keep the certificate good until cancelled."""
        while True:
            await self._clock.sleep(await self.step())

    async def step(self) -> float:
        """Do what the certificate needs now; seconds until the next look. Never raises for a network or a no."""
        now = plan(self._identity.certificate, self._clock.now_s(), self._jitter)
        if now.need is Need.WAIT:
            return min(now.wait_s, self._limits.look_s)
        try:
            await self._renew(now.need)
        except EnrolmentRefusedError as error:
            log.error("the certificate was not renewed: %s", error)
            return self._limits.refused_s * (0.5 + 0.5 * self._random.random())
        except AgentError as error:
            bound_s = min(
                self._limits.retry_first_s * 2.0 ** min(self._failures, 20),
                self._limits.retry_most_s,
            )
            self._failures += 1
            log.warning("the certificate was not renewed: %s; it is tried again", error)
            return bound_s * (0.5 + 0.5 * self._random.random())
        self._failures = 0
        return 0.0

    async def _renew(self, need: Need) -> None:
        name = self._identity.certificate.name
        csr = request(self._store.next_key(), name.device_id)
        if need is Need.LAPSED:
            chain = await self._lapsed(csr)
        else:
            try:
                chain = await self._port.renew(csr)
            except LinkError as first:
                # By the server's clock it may have expired: the connection fails then, and nobody says why.
                log.info("renewal with the certificate failed (%s): trying the identity key", first)
                try:
                    chain = await self._lapsed(csr)
                except EnrolmentRefusedError:
                    raise first from None  # it has not: the network was the trouble
        certificate = self._store.install(chain, name.device_id, name.device_class)
        identity = self._store.read()
        assert identity is not None
        self._identity, self._jitter = identity, self._random.random()
        await self._changed(identity)
        log.info("the certificate is renewed: %s", certificate.serial)
        await self._port.confirm(name.device_id)

    async def _lapsed(self, csr: bytes) -> bytes:
        device_id = self._identity.certificate.name.device_id
        nonce = await self._port.nonce(device_id)
        proof = sign(self._store.identity_key(), lapsed_message(device_id, nonce, csr))
        return await self._port.renew_lapsed(device_id, nonce, csr, proof)
