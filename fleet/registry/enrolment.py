"""Enrolment and renewal as changes of the database, each in the caller's transaction.

Rules kept here: a token is good for one device, one class and one identity key; asked again with the same key the
answer is the same; another key is refused until the device is revoked; the certificate in use stays good until the
next one was used, so a lost answer locks nobody out; a refusal is an answer and not an error, because an alarm that
goes with it has to be committed.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, insert, select, update

from fleet.errors import NotFoundError
from fleet.registry import certificates
from fleet.registry.admission import Known, Peer, Refusal, State, Verdict, judge_renewal
from fleet.registry.authority import Authority
from fleet.registry.device_ca import DeviceKey, issue_to_device
from fleet.registry.devices import register
from fleet.registry.standing import Happening, Standing, step
from fleet.store.tables import device_identities as identities
from fleet.store.tables import devices, enrolment_tokens, identity_events
from fleet.store.upsert import insert as upsert
from protos.identity import DeviceName, Token

__all__ = ["Answer", "Ask", "Issuer", "change_standing", "create_token", "enrol", "first_use",
           "identity_der", "identity_of", "new_secret", "renew", "renew_lapsed"]  # fmt: skip

MAX_REASON: Final = 500


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who signs, and how. ``is_manual``: an operator accepts each device."""

    authority: Authority
    fleet: str
    life_s: float
    is_manual: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to enrol whose keys and proof have been checked. ``token_sha256``: of its secret."""

    name: DeviceName
    token_sha256: str
    key: DeviceKey
    identity: DeviceKey


@dataclass(frozen=True, slots=True)
class Answer:
    """``chain``: the device's certificate and the device CA's, PEM; empty while pending and when refused."""

    standing: Standing
    chain: bytes = b""
    reason: str = ""
    refusal: Refusal | None = None


def create_token(
    connection: Connection,
    name: DeviceName,
    labels: Mapping[str, str],
    token: Token,
    span_s: tuple[float, float],
) -> None:
    """Keep a new token, good from the first to the second time of ``span_s``; earlier ones of the device go.

    Raises:
        ConflictError: the device is accepted or quarantined already.
    """
    step(name.device_id, _standing(connection, name.device_id), Happening.ENROLLED)
    now_s, expires_s = span_s
    dropped = (enrolment_tokens.c.device_id == name.device_id) | (
        (enrolment_tokens.c.expires_s < now_s) & (enrolment_tokens.c.used_by == "")
    )
    connection.execute(delete(enrolment_tokens).where(dropped))
    connection.execute(
        insert(enrolment_tokens),
        {
            "sha256": token.sha256,
            "device_id": name.device_id,
            "device_class": name.device_class,
            "labels": dict(labels),
            "created_s": now_s,
            "expires_s": expires_s,
            "used_by": "",
        },
    )


def enrol(connection: Connection, issuer: Issuer, ask: Ask, now_s: float) -> Answer:
    """Answer a request to enrol."""
    query = select(enrolment_tokens).where(enrolment_tokens.c.sha256 == ask.token_sha256)
    token = connection.execute(query).first()
    standing = _standing(connection, ask.name.device_id)
    refused = _judge_token(token, ask, now_s)
    if refused is not None:
        return Answer(standing, b"", refused.reason, refused.refusal)
    assert token is not None
    known = _identity(connection, ask.name.device_id)
    is_same = known is not None and known.identity_sha256 == ask.identity.sha256
    if standing is Standing.ACCEPTED and is_same:
        return _certified(connection, issuer, ask.name, ask.key, now_s)
    if standing in (Standing.ACCEPTED, Standing.QUARANTINED):
        return _refused(
            standing, Refusal.OTHER_KEY,
            f"device {ask.name.device_id} is {standing} with another key: `fleet device revoke` first",
        )  # fmt: skip
    if standing is Standing.PENDING and not is_same:
        return _refused(
            standing, Refusal.OTHER_KEY,
            f"device {ask.name.device_id} has asked with another key: `fleet device reject` it first",
        )  # fmt: skip
    happening = Happening.ASKED if issuer.is_manual else Happening.ENROLLED
    after = step(ask.name.device_id, standing, happening)
    _mark_used(connection, ask)
    if standing is not after:
        _take_in(connection, ask, token.labels, now_s)
        _stand(connection, ask.name.device_id, after, happening, "", now_s)
    if after is Standing.PENDING:
        return Answer(after, reason="an operator has to accept this device: `fleet device accept`")
    return _certified(connection, issuer, ask.name, ask.key, now_s)


def renew(
    connection: Connection, issuer: Issuer, peer: Peer, key: DeviceKey, now_s: float
) -> Answer:
    """The next certificate for the device at the other end; an alarm when it shows one it had left behind."""
    known = certificates.find_certificate(connection, issuer.fleet, peer.fingerprint)
    verdict = judge_renewal(peer, known, now_s)
    if verdict.refusal is Refusal.CLONED:
        assert known is not None
        happening, id_ = Happening.CLONED, known.name.device_id
        after = step(id_, known.standing, happening)
        _stand(connection, id_, after, happening, verdict.reason, now_s)
        return Answer(after, b"", verdict.reason, verdict.refusal)
    if verdict.refusal is not None:
        standing = Standing.OPEN if known is None else known.standing
        return Answer(standing, b"", verdict.reason, verdict.refusal)
    assert known is not None
    first_use(connection, known, now_s)
    same = certificates.in_use(connection, known.name.device_id, key.sha256)
    if same is not None and same["serial"] == known.serial:
        return _refused(known.standing, Refusal.REQUEST, "a renewal needs a new key")
    return _certified(connection, issuer, known.name, key, now_s)


def renew_lapsed(
    connection: Connection, issuer: Issuer, device_id: str, key: DeviceKey, now_s: float
) -> Answer:
    """A certificate for a device that has proved its identity key, when its own has expired."""
    known, standing = _identity(connection, device_id), _standing(connection, device_id)
    if known is None or standing is not Standing.ACCEPTED:
        refusal = Refusal.REVOKED if standing is Standing.REVOKED else Refusal.NOT_ACCEPTED
        why = f": {known.reason}" if known is not None and known.reason else ""
        return _refused(standing, refusal, f"device {device_id} is {standing}, not accepted{why}")
    current = certificates.in_use(connection, device_id)
    if (
        current is not None
        and current["state"] == State.CURRENT
        and now_s < current["not_after_s"]
        and current["key_sha256"] != key.sha256
    ):
        return _refused(
            standing, Refusal.NOT_DUE,
            f"certificate {current['serial']} of {device_id} has not expired: renew with it",
        )  # fmt: skip
    name = DeviceName(issuer.fleet, known.device_class, device_id)
    return _certified(connection, issuer, name, key, now_s)


def first_use(connection: Connection, known: Known, now_s: float) -> None:
    """A certificate arrived and works: the one before, and the token that it came by, are done with."""
    if known.state is not State.ISSUED:
        return
    certificates.supersede(connection, known.name.device_id, known.serial, now_s)
    connection.execute(
        delete(enrolment_tokens).where(enrolment_tokens.c.device_id == known.name.device_id)
    )


def change_standing(
    connection: Connection, device_id: str, happening: Happening, reason: str, now_s: float
) -> Standing:
    """What an operator decides about a device.

    Raises:
        NotFoundError: nothing was ever heard of it. ConflictError: that cannot be decided now.
    """
    found = connection.execute(select(devices.c.standing).where(devices.c.id == device_id)).scalar()
    if found is None:
        raise NotFoundError(
            f"no device {device_id!r} in this fleet: `fleet device list` shows those"
        )
    after = step(device_id, Standing(found), happening)
    _stand(connection, device_id, after, happening, reason[:MAX_REASON], now_s)
    if after is Standing.REVOKED:
        certificates.withdraw(connection, device_id, now_s)
        connection.execute(
            delete(enrolment_tokens).where(enrolment_tokens.c.device_id == device_id)
        )
    return after


def identity_of(connection: Connection, device_id: str, events: int = 10) -> dict[str, Any]:
    """For people: standing and why, certificate, and what became of the identity, newest first."""
    known = _identity(connection, device_id)
    certificate = certificates.in_use(connection, device_id)
    query = (
        select(identity_events.c.at_s, identity_events.c.event, identity_events.c.reason)
        .where(identity_events.c.device_id == device_id)
        .order_by(identity_events.c.id.desc())
        .limit(events)
    )
    names = ("serial", "state", "not_before_s", "not_after_s")
    return {
        "standing": str(_standing(connection, device_id)),
        "reason": "" if known is None else known.reason,
        "certificate": {} if certificate is None else {name: certificate[name] for name in names},
        "events": [row._asdict() for row in connection.execute(query)],
    }


def identity_der(connection: Connection, device_id: str) -> bytes:
    """A device's long-lived public key, DER; empty when it never enrolled."""
    known = _identity(connection, device_id)
    return b"" if known is None else bytes(known.identity_key)


# --- parts --------------------------------------------------------------------------------------------


def _judge_token(token: Row[Any] | None, ask: Ask, now_s: float) -> Verdict | None:
    again = f"make another with `fleet device token create {ask.name.device_id}`"
    if token is None:
        return Verdict(Refusal.TOKEN, f"the token is not known, or was used: {again}")
    if (token.device_id, token.device_class) != (ask.name.device_id, ask.name.device_class):
        return Verdict(
            Refusal.TOKEN,
            f"the token is for device {token.device_id} of class {token.device_class}, not for "
            f"{ask.name.device_id} of class {ask.name.device_class}",
        )
    if token.used_by and token.used_by != ask.identity.sha256:
        return Verdict(Refusal.OTHER_KEY, f"the token was used with another key: {again}")
    if not token.used_by and now_s >= token.expires_s:
        return Verdict(Refusal.TOKEN, f"the token has expired: {again}")
    return None


def _certified(
    connection: Connection, issuer: Issuer, name: DeviceName, key: DeviceKey, now_s: float
) -> Answer:
    """A certificate for this key: the one there is, else a new one."""
    found = certificates.in_use(connection, name.device_id, key.sha256)
    if found is not None and now_s < found["not_after_s"]:
        pem = str(found["pem"])
    else:
        made = issue_to_device(issuer.authority, name, key, now_s, issuer.life_s)
        pem = certificates.add_certificate(connection, name, made, now_s)
    return Answer(Standing.ACCEPTED, pem.encode() + issuer.authority.pem)


def _take_in(connection: Connection, ask: Ask, labels: Mapping[str, str], now_s: float) -> None:
    """A device by its identity: what it was before under this name has no say any more."""
    name = ask.name
    register(connection, [name.device_id], now_s)
    certificates.withdraw(connection, name.device_id, now_s)
    connection.execute(
        update(devices)
        .where(devices.c.id == name.device_id)
        .values(device_class=name.device_class, labels=dict(labels))
    )
    row = {
        "device_id": name.device_id,
        "device_class": name.device_class,
        "labels": dict(labels),
        "identity_key": ask.identity.der,
        "identity_sha256": ask.identity.sha256,
        "reason": "",
        "changed_s": now_s,
    }
    put = upsert(connection, identities)
    changed = {key: put.excluded[key] for key in row if key != "device_id"}
    connection.execute(
        put.on_conflict_do_update(index_elements=[identities.c.device_id], set_=changed), row
    )


def _mark_used(connection: Connection, ask: Ask) -> None:
    connection.execute(
        update(enrolment_tokens)
        .where(enrolment_tokens.c.sha256 == ask.token_sha256)
        .values(used_by=ask.identity.sha256)
    )


def _stand(
    connection: Connection,
    device_id: str,
    after: Standing,
    happening: Happening,
    reason: str,
    now_s: float,
) -> None:
    connection.execute(update(devices).where(devices.c.id == device_id).values(standing=after))
    connection.execute(
        update(identities)
        .where(identities.c.device_id == device_id)
        .values(reason=reason, changed_s=now_s)
    )
    event = {"device_id": device_id, "at_s": now_s, "event": happening, "reason": reason}
    connection.execute(insert(identity_events), event)


def _identity(connection: Connection, device_id: str) -> Row[Any] | None:
    return connection.execute(select(identities).where(identities.c.device_id == device_id)).first()


def _standing(connection: Connection, device_id: str) -> Standing:
    found = connection.execute(select(devices.c.standing).where(devices.c.id == device_id)).scalar()
    return Standing.OPEN if found is None else Standing(found)


def _refused(standing: Standing, refusal: Refusal, reason: str) -> Answer:
    return Answer(standing, b"", reason, refusal)


def new_secret() -> str:
    """Of a token: 256 bits, in URL-safe base64."""
    return secrets.token_urlsafe(32)
