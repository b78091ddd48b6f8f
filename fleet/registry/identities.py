"""The identities of a fleet: tokens, enrolment, renewal, revocation, and who may speak.

Rules kept here: the device table is the truth and every call is checked against it; whoever may not speak any more is
cut off at once (their streams, the CRL), and the answer to the operator comes after that; signing happens in the
transaction that notes the certificate, so there is none that the database does not know.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from fleet.errors import FleetError, RequestError
from fleet.home import PkiPaths
from fleet.registry import enrolment
from fleet.registry.admission import Peer, Refusal, Verdict, judge_call
from fleet.registry.authority import load_authority, load_certificate, spki_sha256
from fleet.registry.certificates import find_certificate, forget_expired, not_to_be_accepted
from fleet.registry.device_ca import check_proof, identity_key, requested_key
from fleet.registry.enrolment import Answer, Ask, Issuer
from fleet.registry.nonces import Nonces
from fleet.registry.pki import CRL_LIFE_S, renew_servers, require_pki
from fleet.registry.settings import EnrolmentConfig
from fleet.registry.standing import Happening, Standing
from fleet.registry.streams import OpenStreams
from fleet.repository.files import write_durable
from fleet.store.engine import Store
from fleet.store.writer import Writer
from protos.identity import NAME, DeviceName, Token, enrol_message, lapsed_message
from protos.topics import MANAGER

__all__ = ["Identities", "IdentityPolicy"]

_LOG = logging.getLogger(__name__)
DAY_S: Final = 86_400.0
LOOK_S: Final = 60.0  # between two looks whether the CRL has to be written
MAX_TTL_S: Final = 30 * DAY_S
MAX_LABELS: Final = 32
_LABEL_KEY: Final = re.compile(r"[A-Za-z0-9._-]{1,40}")
_RESERVED: Final = frozenset({"class", "hardware", "id"})


@dataclass(frozen=True, slots=True)
class IdentityPolicy:
    """What fleet.toml says. ``names``: of the servers' certificates."""

    enrolment: EnrolmentConfig
    names: tuple[str, ...] = ()


class Identities:
    """Needs certificates: see ``fleet/registry/pki.py``.

    Raises:
        ConfigError: on being made: certificates are missing or cannot be read.
    """

    def __init__(
        self,
        store: Store,
        writer: Writer,
        paths: PkiPaths,
        fleet: str,
        policy: IdentityPolicy,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        require_pki(paths)
        self._store = store
        self._writer = writer
        self._paths = paths
        self._fleet = fleet
        self._policy = policy
        self.now_s = now_s
        self._issuer = Issuer(
            load_authority(paths.device_ca, paths.device_ca_key),
            fleet,
            policy.enrolment.certificate_days * DAY_S,
            policy.enrolment.accept == "manual",
        )
        self._server_sha256 = spki_sha256(load_certificate(paths.server_ca))
        self._nonces = Nonces(time.monotonic)
        self._writing = asyncio.Lock()
        self._is_stale = True  # the CRL
        self.streams = OpenStreams()

    # --- for operators ----------------------------------------------------------------------------

    async def create_token(
        self, device_id: str, device_class: str, labels: Mapping[str, str], ttl_s: float
    ) -> Token:
        """A new one-time token, good for ``ttl_s`` seconds. It is shown once: only its hash is kept.

        Raises:
            RequestError: a name, a label or the time to live is not allowed. ConflictError: the device is enrolled.
        """
        name = self._name(device_id, device_class)
        _check_labels(labels)
        if not 60 <= ttl_s <= MAX_TTL_S:
            raise RequestError(
                f"a token good for {ttl_s:g} s is not allowed: between 1 minute and {MAX_TTL_S / DAY_S:.0f} days"
            )
        token = Token(enrolment.new_secret(), self._server_sha256)
        span_s = (self.now_s(), self.now_s() + ttl_s)
        await self._writer.run(
            lambda connection: enrolment.create_token(connection, name, labels, token, span_s)
        )
        return token

    async def decide(self, device_id: str, happening: Happening, reason: str) -> Standing:
        """Accept, reject or revoke a device; whoever may not speak any more is cut off when this returns.

        Raises:
            NotFoundError: nothing was heard of it. ConflictError: that cannot be decided now.
            ServerError: the CRL could not be written; the table holds all the same.
        """
        now_s = self.now_s()
        after = await self._writer.run(
            lambda connection: enrolment.change_standing(
                connection, device_id, happening, reason, now_s
            )
        )
        _LOG.warning(
            "device %s is %s: %s", device_id, after, reason or f"{happening} by an operator"
        )
        await self._cut_off(device_id, after)
        return after

    # --- for devices ------------------------------------------------------------------------------

    async def enrol(
        self, claimed: tuple[str, str], secret: str, csr: bytes, proof: tuple[bytes, bytes]
    ) -> Answer:
        """Answer a request to enrol.

        Args:
            claimed: device id and class.
            secret: of the token.
            csr: PKCS #10, DER.
            proof: the identity key (DER) and its signature.

        Raises:
            RequestError: something is malformed or not signed by the key that it names.
        """
        name = self._name(*claimed)
        key, identity = requested_key(csr), identity_key(proof[0])
        check_proof(identity, proof[1], enrol_message(name.device_id, csr))
        ask = Ask(name, Token(secret, "").sha256, key, identity)
        answer = await self._change(enrolment.enrol, ask)
        _log_answer("enrol", name.device_id, answer)
        return answer

    async def renew(self, peer: Peer, csr: bytes) -> Answer:
        """The next certificate for the holder of this one. Raises RequestError: the request is malformed."""
        key = requested_key(csr)
        answer = await self._change(enrolment.renew, peer, key)
        _log_answer("renew", peer.name.device_id, answer)
        if answer.refusal is Refusal.CLONED:
            await self._cut_off(peer.name.device_id, answer.standing)
        return answer

    def nonce(self, device_id: str) -> bytes:
        """A number to sign. Raises RequestError: that is no device id."""
        return self._nonces.give(self._name(device_id, "any").device_id)

    async def renew_lapsed(self, device_id: str, nonce: bytes, csr: bytes, proof: bytes) -> Answer:
        """A certificate for a device whose own has expired. Raises RequestError: something is malformed."""
        key = requested_key(csr)
        if not self._nonces.take(device_id, nonce):
            return Answer(
                Standing.OPEN,
                b"",
                "the nonce is not known any more: ask for another",
                Refusal.NONCE,
            )
        der = await asyncio.to_thread(self._identity_der, device_id)
        if not der:
            return Answer(
                Standing.OPEN,
                b"",
                f"device {device_id[:80]!r} never enrolled",
                Refusal.NOT_ACCEPTED,
            )
        check_proof(identity_key(der), proof, lapsed_message(device_id, nonce, csr))
        answer = await self._change(enrolment.renew_lapsed, device_id, key)
        _log_answer("renew after expiry", device_id, answer)
        return answer

    async def admit(self, peer: Peer, device_id: str | None) -> Verdict:
        """Whether the holder of a certificate may make a call that speaks of this device (None: of none)."""
        known = await asyncio.to_thread(self._find, peer.fingerprint)
        verdict = judge_call(peer, known, device_id, self.now_s())
        if verdict.first_use:
            assert known is not None
            now_s = self.now_s()
            await self._writer.run(lambda connection: enrolment.first_use(connection, known, now_s))
            self._is_stale = True
            _LOG.info("device %s uses certificate %s", known.name.device_id, known.serial)
        return verdict

    # --- upkeep -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the CRL and the servers' certificates fresh until cancelled; ``keep_fresh`` comes before."""
        kept_s = time.monotonic()
        while True:
            try:
                if time.monotonic() - kept_s >= DAY_S:
                    kept_s = time.monotonic()
                    await self.keep_fresh()
                elif self._is_stale:
                    await self.write_revocations()
            except FleetError as error:
                _LOG.error("certificates could not be kept fresh: %s", error)
            await asyncio.sleep(LOOK_S)

    async def keep_fresh(self) -> None:
        """Renew what is about to expire, and write the CRL, which expires too.

        Raises:
            ConfigError: an authority cannot be read. ServerError: the disk or the database refused.
        """
        now_s = self.now_s()
        made = await asyncio.to_thread(renew_servers, self._paths, self._policy.names, now_s)
        if made:
            _LOG.info("certificates renewed: %s", ", ".join(made))
        await self._writer.run(lambda connection: forget_expired(connection, now_s))
        await self.write_revocations()

    async def write_revocations(self) -> None:
        """Write the CRL: every certificate that has not expired and is not to be accepted.

        Raises:
            ServerError: the disk or the database refused.
        """
        async with self._writing:  # an older list must not overtake a newer one
            self._is_stale = False
            try:
                await asyncio.to_thread(self._write_revocations)
            except FleetError:
                self._is_stale = True
                raise

    def _write_revocations(self) -> None:
        now_s = self.now_s()
        with self._store.read() as connection:
            revoked = not_to_be_accepted(connection, now_s)
        crl = self._issuer.authority.revocations(revoked, now_s, now_s + CRL_LIFE_S)
        write_durable(self._paths.revoked, crl)

    async def _cut_off(self, device_id: str, standing: Standing) -> None:
        if standing is not Standing.ACCEPTED:
            closed = self.streams.close(device_id)
            _LOG.info("%d open streams of device %s closed", closed, device_id)
        await self.write_revocations()

    async def _change(self, work: Callable[..., Answer], *arguments: Any) -> Answer:
        now_s = self.now_s()

        def change(connection: Connection) -> Answer:
            return work(connection, self._issuer, *arguments, now_s)

        return await self._writer.run(change)

    def _find(self, fingerprint: str) -> Any:
        with self._store.read() as connection:
            return find_certificate(connection, self._fleet, fingerprint)

    def _identity_der(self, device_id: str) -> bytes:
        with self._store.read() as connection:
            return enrolment.identity_der(connection, device_id)

    def _name(self, device_id: str, device_class: str) -> DeviceName:
        for what, text in (("id", device_id), ("class", device_class)):
            if not NAME.fullmatch(text):
                raise RequestError(
                    f"device {what} {text[:80]!r} is not allowed: use 1 to 40 of a-z, 0-9 and '-'"
                )
        if device_id == MANAGER:
            raise RequestError(
                f"device id {MANAGER!r} is not allowed: it is the fleet manager's own name at a broker"
            )
        return DeviceName(self._fleet, device_class, device_id)


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MAX_LABELS:
        raise RequestError(f"{len(labels)} labels, at most {MAX_LABELS} are allowed")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key) or key in _RESERVED or len(value) > 128:
            raise RequestError(
                f"{key[:80]!r} cannot be a label: use 1 to 40 of A-Z, a-z, 0-9, '.', '_' and '-', none of "
                f"{', '.join(sorted(_RESERVED))}, and at most 128 characters for its value"
            )


def _log_answer(what: str, device_id: str, answer: Answer) -> None:
    if answer.refusal is Refusal.CLONED:
        _LOG.error("CLONE ALARM: device %s is quarantined: %s", device_id, answer.reason)
    elif answer.refusal is not None:
        _LOG.warning(
            "%s of device %s refused (%s): %s", what, device_id, answer.refusal, answer.reason
        )
    else:
        _LOG.info("%s of device %s: %s", what, device_id, answer.standing)
