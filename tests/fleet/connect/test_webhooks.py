"""Webhooks over real HTTP to a real receiver: retries, order, signatures, death in between."""

import base64
import hashlib
import hmac
import json
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fleet.connect import outbox
from fleet.connect.event_types import EVENT_TYPES
from fleet.connect.events import Event
from fleet.connect.targets import Target
from fleet.connect.webhooks import Webhooks, client_for
from fleet.errors import NotFoundError
from fleet.store.engine import Store
from fleet.store.writer import Writer
from tests.support.receiver import Got, Receiver, Reply, receiving

KEY = b"k" * 32


class Clock:
    """Time for the webhooks; nobody waits."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., Webhooks]


@pytest.fixture
async def make(store: Store, receiver: Receiver, clock: Clock) -> AsyncIterator[Make]:
    writer = Writer(store)

    def webhooks(**changes: Any) -> Webhooks:
        usual = {"name": "chat", "url": f"{receiver.url}/hook", "secrets": (KEY,)}
        usual |= {"events": EVENT_TYPES, "timeout_s": 60.0}
        target = Target(**{**usual, **changes})
        return Webhooks(store, writer, [target], link=lambda: "http://127.0.0.1:8470", now_s=clock)

    yield webhooks
    writer.close()


def put(store: Store, *numbers: int, at_s: float = 1_700_000_000.0) -> None:
    with store.begin() as connection:
        for number in numbers:
            data = {"number": number, "reason": "läuft"}
            outbox.add(connection, Event("rollout.stage", at_s, "r1", "/v1/rollouts/r1", data))


async def step(webhooks: Webhooks) -> float:
    async with client_for(webhooks.targets[0]) as client:
        return await webhooks.step("chat", client)


def verified(got: Got) -> dict[str, Any]:
    """What a receiver does: check the signature over the raw body, then parse."""
    said = got.headers
    signed = f"{said['webhook-id']}.{said['webhook-timestamp']}.".encode() + got.body
    wanted = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert said["webhook-signature"] == f"v1,{wanted}"
    parsed: dict[str, Any] = json.loads(got.body)
    return parsed


def numbers(receiver: Receiver) -> list[int]:
    return [verified(got)["data"]["number"] for got in receiver.got]


async def test_a_receiver_that_fails_twice_gets_everything_once_and_in_order(
    make: Make, store: Store, receiver: Receiver, clock: Clock
) -> None:
    webhooks = make()
    await webhooks.register()
    put(store, 1, 2)
    receiver.replies = [Reply(500), Reply(302, headers={"location": f"{receiver.url}/else"})]
    assert await step(webhooks) == 5.0
    assert await step(webhooks) == 5.0  # not yet: nothing is sent
    clock.now_s += 5
    assert await step(webhooks) == 10.0
    clock.now_s += 10
    assert await step(webhooks) == 0.0
    assert await step(webhooks) == 0.0
    assert await step(webhooks) > 0
    assert numbers(receiver) == [1, 1, 1, 2]
    assert {got.path for got in receiver.got} == {"/hook"}  # a redirect is not followed
    ids = [got.headers["webhook-id"] for got in receiver.got]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    first = verified(receiver.got[0])
    assert first["data"]["link"] == "http://127.0.0.1:8470/v1/rollouts/r1"
    assert receiver.got[0].headers["content-type"] == "application/json"
    assert receiver.got[3].headers["webhook-timestamp"] == "1700000015"


async def test_what_was_sent_and_not_noted_is_sent_again_under_the_same_id(
    make: Make, store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhooks = make()
    await webhooks.register()
    put(store, 1)

    class KilledError(BaseException):
        """The process ends."""

    def die(*_arguments: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "delivered", die)
        with pytest.raises(KilledError):
            await step(webhooks)
    again = make()
    await again.register()
    assert await step(again) == 0.0
    assert numbers(receiver) == [1, 1]
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 1
    assert await step(again) > 0


KILLED = """
import os, signal, sys
from pathlib import Path
from fleet.connect import outbox
from fleet.connect.events import Event
from fleet.store.engine import open_store
with open_store(Path(sys.argv[1])).begin() as connection:
    outbox.add(connection, Event("rollout.stage", 1.7e9, "r1", "/v1/rollouts/r1", {"number": 7}))
    if sys.argv[2] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("when", "told"), [("before", []), ("after", [7])])
async def test_a_process_killed_around_the_commit(
    make: Make, store: Store, receiver: Receiver, tmp_path: Path, when: str, told: list[int]
) -> None:
    await make().register()
    database = str(tmp_path / "fleet.db")
    done = subprocess.run([sys.executable, "-c", KILLED, database, when], check=False)
    assert done.returncode == -signal.SIGKILL
    webhooks = make()
    await webhooks.register()
    await step(webhooks)
    assert numbers(receiver) == told


async def test_no_answer_and_nobody_there_are_failures(
    make: Make, store: Store, receiver: Receiver, clock: Clock
) -> None:
    late = threading.Event()
    receiver.replies = [Reply(waits=late)]
    webhooks = make(timeout_s=0.2)
    await webhooks.register()
    put(store, 1)
    try:
        assert await step(webhooks) == 5.0
    finally:
        late.set()
    [told] = await webhooks.listed()
    assert told["last_error"] == "no answer within 0.2 s"
    clock.now_s += 5
    gone = make(url="http://127.0.0.1:1/")
    assert await step(gone) == 10.0
    [told] = await gone.listed()
    assert told["last_error"].startswith("ConnectError: ")
    assert (told["failures"], told["pending"]) == (2, 1)


def nobodys_certificate(folder: Path) -> ssl.SSLContext:
    """A server's side of TLS with a certificate that no authority knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + made.public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    make: Make, store: Store, tmp_path: Path
) -> None:
    with receiving(nobodys_certificate(tmp_path)) as stranger:
        webhooks = make(url=f"{stranger.url}/hook")
        await webhooks.register()
        put(store, 1)
        assert await step(webhooks) == 5.0
        [told] = await webhooks.listed()
    assert "CERTIFICATE_VERIFY_FAILED" in told["last_error"]
    assert stranger.got == []


async def test_a_busy_receiver_is_left_alone_as_long_as_it_asks(
    make: Make, store: Store, receiver: Receiver
) -> None:
    receiver.replies = [Reply(429, headers={"retry-after": "120"})]
    webhooks = make()
    await webhooks.register()
    put(store, 1)
    assert await step(webhooks) == 120.0


async def test_an_event_is_given_up_after_three_days(
    make: Make, store: Store, receiver: Receiver, clock: Clock
) -> None:
    receiver.usual = Reply(500)
    webhooks = make()
    await webhooks.register()
    put(store, 1)
    clock.now_s += 3 * 86_400
    await step(webhooks)
    [told] = await webhooks.listed()
    assert (told["given_up"], told["pending"]) == (1, 0)
    assert told["last_error"] == "answered with status 500"


async def test_a_test_that_is_taken_sends_what_waits(
    make: Make, store: Store, receiver: Receiver
) -> None:
    receiver.replies = [Reply(500), Reply(404)]
    webhooks = make()
    await webhooks.register()
    put(store, 1)
    await step(webhooks)
    refused = await webhooks.test("chat")
    assert refused.error == "answered with status 404"
    assert await step(webhooks) > 0
    taken = await webhooks.test("chat")
    assert (taken.status, taken.error) == (204, "")
    assert verified(receiver.got[-1])["type"] == "webhook.test"
    assert await step(webhooks) == 0.0
    with pytest.raises(NotFoundError, match="no webhook 'pager'; known: chat"):
        await webhooks.test("pager")


async def test_the_list_shows_no_secret_and_no_query(make: Make, receiver: Receiver) -> None:
    webhooks = make(url=f"{receiver.url}/hook?token=abc")
    await webhooks.register()
    [told] = await webhooks.listed()
    assert told["url"] == f"{receiver.url}/hook"
    assert "secret" not in str(told)
    assert "kkk" not in repr(webhooks.targets)
