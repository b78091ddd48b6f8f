"""What strangers send to the port on which devices enrol: the real service over a real database, in this process."""

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf.message import DecodeError, Message

from agent.identity.certificate import public_der
from fleet.api.enrol_service import EnrolService
from fleet.home import PkiPaths
from fleet.registry.enrolment import create_token
from fleet.registry.identities import Identities, IdentityPolicy
from fleet.registry.pki import init_pki
from fleet.registry.settings import EnrolmentConfig
from fleet.store.engine import open_store
from fleet.store.writer import Writer
from protos import enrol_pb2
from protos.identity import DeviceName, Token, enrol_message
from tests.fuzz.holes import Target, check_message

__all__ = ["CSR", "METHODS", "REFUSALS", "EnrolBed", "csrs", "identity_keys", "signature"]

METHODS: Final[Mapping[str, type[Message]]] = {
    "Enrol": enrol_pb2.EnrolRequest,
    "Renew": enrol_pb2.RenewRequest,
    "Nonce": enrol_pb2.NonceRequest,
    "RenewLapsed": enrol_pb2.RenewLapsedRequest,
}
"""In the order of a script's first byte."""
REFUSALS: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
"""What a stranger may be told. UNKNOWN, which gRPC says after any other exception, is a hole."""
_MANY: Final = 10**9

T = TypeVar("T")


class _AbortedError(Exception):
    """As grpc.aio ends a call."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(f"{code.name}: {text}")
        self.code = code
        self.text = text


@dataclass
class _Context:
    """Of one call, as the service sees it. ``shown``: the certificate at the other end, PEM."""

    shown: bytes = b""

    def peer(self) -> str:
        return "ipv4:192.0.2.1:4000"

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        return {"x509_pem_cert": [self.shown]} if self.shown else {}

    async def abort(self, code: grpc.StatusCode, text: str) -> NoReturn:
        raise _AbortedError(code, text)


class EnrolBed:
    """A fleet manager's side of enrolment: a token for ``cam-1`` that is never used up, and a device that enrolled."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._runner = asyncio.Runner()
        self._store = open_store(folder / "fleet.db")
        self._writer = Writer(self._store)
        paths = PkiPaths(folder / "pki")
        init_pki(paths, "lab", (), time.time())
        limits = EnrolmentConfig(per_minute=_MANY, per_peer_per_minute=_MANY)
        self.identities = Identities(
            self._store, self._writer, paths, "lab", IdentityPolicy(limits)
        )
        self.service = EnrolService(self.identities, limits)
        for device_id in ("cam-1", "cam-2"):
            self._make_token(device_id)
        asked = self.enrol_request("cam-2", token=_secret("cam-2"))
        self._device = bytes(self._runner.run(self.service.Enrol(asked, _Context())).chain)

    def _make_token(self, device_id: str) -> None:
        """Like one that an operator makes, but always the same: a run has to be repeatable."""
        name, token = DeviceName("lab", "camera", device_id), Token(_secret(device_id), "")
        span_s = (self.identities.now_s(), self.identities.now_s() + 86_400.0)
        self._runner.run(
            self._writer.run(lambda connection: create_token(connection, name, {}, token, span_s))
        )

    def __enter__(self) -> "EnrolBed":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()
        self._store.close()
        self._runner.close()

    def enrol_request(self, device_id: str = "cam-1", **changes: Any) -> enrol_pb2.EnrolRequest:
        """A valid one, with some fields changed; the proof is for the request as it is then."""
        csr = changes.get("csr", CSR)
        values = {
            "token": _secret("cam-1"), "device_id": device_id, "device_class": "camera", "csr": csr,
            "identity_key": public_der(IDENTITY), "proof": signature(enrol_message(device_id, csr)),
        }  # fmt: skip
        return enrol_pb2.EnrolRequest(**values | changes)

    def feed(self, data: bytes) -> None:
        """``data``: a number of ``METHODS``, and the message."""
        number, raw = (data[0] if data else 0) % len(METHODS), data[1:]
        name, kind = list(METHODS.items())[number]
        try:
            asked = kind.FromString(raw)
        except DecodeError:
            return  # gRPC refuses it before the service sees it
        self.ask(name, asked)

    def ask(self, name: str, asked: Message) -> grpc.StatusCode:
        """The status that a stranger is told (a device with a certificate, for Renew). Raises where there is a hole."""
        context = _Context(self._device if name == "Renew" else b"")
        try:
            self._runner.run(getattr(self.service, name)(asked, context))
        except _AbortedError as error:
            refused = error
        else:
            return grpc.StatusCode.OK
        assert refused.code in REFUSALS, str(refused)
        check_message(refused.text)
        return refused.code

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """On the loop to which the service belongs."""
        return self._runner.run(work)

    def nonce(self, device_id: str = "cam-2") -> bytes:
        return self.identities.nonce(device_id)

    def seeds(self) -> list[bytes]:
        """A valid message to each method."""
        messages = (
            self.enrol_request(),
            enrol_pb2.RenewRequest(csr=CSR),
            enrol_pb2.NonceRequest(device_id="cam-2"),
            enrol_pb2.RenewLapsedRequest(device_id="cam-2", nonce=self.nonce(), csr=CSR, proof=CSR[:70]),
        )  # fmt: skip
        return [bytes((n,)) + one.SerializeToString() for n, one in enumerate(messages)]

    def target(self) -> Target:
        return Target("enrol", self.seeds(), self.feed)


def _secret(device_id: str) -> str:
    return f"{device_id}-" + "x" * 37


def _csr(key: Any, digest: Any) -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cam-1")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    again = True if isinstance(key, ec.EllipticCurvePrivateKey) else None
    made = builder.sign(key, digest, ecdsa_deterministic=again)
    return bytes(made.public_bytes(Encoding.DER))


_CURVE: Final = ec.SECP256R1()
IDENTITY: Final = ec.derive_private_key(1789, _CURVE)
CSR: Final = _csr(ec.derive_private_key(1848, _CURVE), hashes.SHA256())
"""Of a key that was never used; the same in each run."""


def signature(message: bytes) -> bytes:
    """By the identity key; the same in each run."""
    return IDENTITY.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def csrs() -> Mapping[str, bytes]:
    """Signing requests of every kind that a library can make, and some that none should."""
    made = {name: _csr(key, digest) for name, (key, digest) in _keys().items()}
    good = CSR
    version = bytes.fromhex("020100")  # INTEGER 0, the only version that PKCS #10 has
    made["version 2"] = good.replace(version, bytes.fromhex("020101"), 1)
    made["version 3"] = good.replace(version, bytes.fromhex("020102"), 1)
    made["long version"] = good.replace(version, bytes.fromhex("02017f"), 1)
    made["bytes after it"] = good + b"x"
    made["twice"] = good + good
    made["nothing"] = b""
    made["a certificate"] = _certificate()
    made["other curve by name"] = good.replace(
        bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030101"), 1
    )  # secp192r1
    made["unknown curve"] = good.replace(
        bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d03017f"), 1
    )
    made["unknown signature"] = good.replace(
        bytes.fromhex("2a8648ce3d040302"), bytes.fromhex("2a8648ce3d04037f"), 1
    )
    made["a point that is none"] = good[:-140] + bytes(64) + good[-76:]
    return made


def _keys() -> Mapping[str, tuple[Any, Any]]:
    sha256 = hashes.SHA256()
    return {
        "rsa 1024": (rsa.generate_private_key(65537, 1024), sha256),
        "rsa 2048": (rsa.generate_private_key(3, 2048), sha256),
        "dsa": (dsa.generate_private_key(1024), sha256),
        "p-384": (ec.derive_private_key(7, ec.SECP384R1()), sha256),
        "k-256": (ec.derive_private_key(7, ec.SECP256K1()), sha256),
        "brainpool": (ec.derive_private_key(7, ec.BrainpoolP256R1()), sha256),
        "ed25519": (ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)), None),
        "sha-512": (ec.derive_private_key(7, _CURVE), hashes.SHA512()),
    }


def _certificate() -> bytes:
    from fleet.registry.authority import make_authority

    return bytes(make_authority("x", time.time(), 3600.0).certificate.public_bytes(Encoding.DER))


def identity_keys() -> Mapping[str, bytes]:
    """Public keys of every kind, DER."""
    return {
        name: key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for name, (key, _) in _keys().items()
    }
