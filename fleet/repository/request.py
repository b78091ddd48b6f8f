"""A signing request: the next version of a role as one file, which travels to those who hold the keys and back.

The file is JSON for people and programs alike. It holds everything that a machine without a fleet folder needs to
check what it is asked to sign: every root, the targets role, the published version and the next one.

Rules kept here:

* Form only: size, keys and kinds are checked before anything is believed; :mod:`fleet.repository.request_rules`
  checks what it says.
* A request is a value: signing one makes another.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from agent.runtime.verdict import clean_text
from agent.trust.reading import FLEET_FIELD
from fleet.claims.attestation import MAX_ATTESTATION_BYTES
from fleet.errors import RequestError
from fleet.repository.roles import expiry, validity_s
from fleet.repository.words import changes

__all__ = [
    "FORMAT",
    "LIFE_S",
    "MAX_REQUEST_BYTES",
    "Chain",
    "SigningRequest",
    "chain_of",
    "next_version",
    "parse_request",
    "read_request",
    "request_bytes",
]

FORMAT: Final = "muster-signing-request/1"
MAX_REQUEST_BYTES: Final = 8 * 1024 * 1024
FLEET_CHARS: Final = 80
MAX_ROOTS: Final = 65
"""As many as a device follows in one refresh, and the one it has."""
LIFE_S: Final = 14 * 86_400.0
"""How long a request may be signed and merged: what lies about for longer was forgotten, not approved."""
_LATEST_S: Final = 253_402_300_799  # 9999-12-31
_KEYS: Final = frozenset({
    "format", "fleet", "role", "created_s", "expires_s", "says", "needs", "metadata", "companions",
    "bases", "manifests", "roots", "targets", "base",
})  # fmt: skip
_OPTIONAL: Final = frozenset({"attestations"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Chain:
    """What is published, as far as one role rests on it.

    Attributes:
        roots: consecutive roots, the newest last.
        targets: the targets role.
        base: the published version of the role itself.
    """

    roots: "tuple[Metadata[Root], ...]"
    targets: "Metadata[Targets]"
    base: "Metadata[Any]"

    @property
    def fleet(self) -> str:
        """The name of the fleet, as one printable line."""
        name = self.roots[-1].signed.unrecognized_fields.get(FLEET_FIELD, "")
        return clean_text(str(name), FLEET_CHARS)


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """What is to be signed, and what it is checked by.

    Attributes:
        role: whose next version it is.
        metadata: the next version, with the signatures that there are so far.
        chain: what is published.
        created_s, expires_s: from when until when it may be signed, in seconds since the epoch.
        companions: files of other roles that have to be published together with it, since it changes their keys, with
            the signatures that there are so far.
        bases: the published version of each companion that there is one of.
        manifests: manifest of each bundle that is new in it, by path.
        attestations: of the checks of each such bundle, by path.
    """

    role: str
    metadata: "Metadata[Any]"
    chain: Chain
    created_s: float
    expires_s: float
    companions: "Mapping[str, Metadata[Any]]" = field(default_factory=dict)
    bases: "Mapping[str, Metadata[Any]]" = field(default_factory=dict)
    manifests: Mapping[str, bytes] = field(default_factory=dict)
    attestations: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)

    @property
    def says(self) -> tuple[str, ...]:
        """What it changes, in words."""
        together = tuple(
            f"together with {role}: {line}"
            for role, base in self.bases.items()
            if role in self.companions
            for line in changes(base, self.companions[role])
        )
        return (*changes(self.chain.base, self.metadata), *together)

    @property
    def files(self) -> "dict[str, Metadata[Any]]":
        """Everything that is published together, by role."""
        return {self.role: self.metadata, **self.companions}

    @property
    def version(self) -> int:
        """The version that it makes."""
        return int(self.metadata.signed.version)

    @property
    def file_name(self) -> str:
        """The name that such a file is given."""
        return f"{self.role}-{self.version}.signing-request.json"


def chain_of(role: str, roots: Sequence[bytes], get: Callable[[str], bytes]) -> Chain:
    """What is published, from its files.

    Args:
        role: a role that people sign.
        roots: every root, the first one first.
        get: the newest file of ``targets`` or of the role.

    Raises:
        RepositoryError: a file is no metadata.
    """
    parsed = tuple(Metadata[Root].from_bytes(raw) for raw in roots[-MAX_ROOTS:])
    targets = Metadata[Targets].from_bytes(get("targets"))
    if role == "root":
        return Chain(parsed, targets, parsed[-1])
    return Chain(parsed, targets, targets if role == "targets" else Metadata.from_bytes(get(role)))


def next_version(role: str, base: "Metadata[Any]", now_s: float) -> "Metadata[Any]":
    """The same content as the next version, signed by nobody yet, for as long as the role's signatures hold."""
    metadata: Metadata[Any] = Metadata.from_dict(base.to_dict())
    metadata.signed.version += 1
    metadata.signed.expires = expiry(now_s, validity_s(role))
    metadata.signatures.clear()
    return metadata


def request_bytes(request: SigningRequest, needs: Sequence[Mapping[str, Any]]) -> bytes:
    """The file. ``needs`` is for readers: who may sign, who has, how many are needed."""
    chain = request.chain
    has_base = request.role not in ("root", "targets")
    body = {
        "format": FORMAT,
        "fleet": chain.fleet,
        "role": request.role,
        "created_s": int(request.created_s),
        "expires_s": int(request.expires_s),
        "says": list(request.says),
        "needs": list(needs),
        "metadata": request.metadata.to_dict(),
        "companions": {role: one.to_dict() for role, one in request.companions.items()},
        "bases": {role: one.to_dict() for role, one in request.bases.items()},
        "manifests": {path: raw.decode() for path, raw in request.manifests.items()},
        "roots": [root.to_dict() for root in chain.roots[-MAX_ROOTS:]],
        "targets": chain.targets.to_dict(),
        "base": chain.base.to_dict() if has_base else None,
    }
    if (
        request.attestations
    ):  # left out where there are none, so that an older `fleet` reads the file
        body["attestations"] = {
            path: [raw.decode() for raw in raws] for path, raws in request.attestations.items()
        }
    return json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"


def read_request(path: Path) -> SigningRequest:
    """A request from its file.

    Raises:
        RequestError: it cannot be read, is too large, or no signing request.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_REQUEST_BYTES + 1)
    except OSError as error:
        raise RequestError(
            f"cannot read the signing request {path}: {error.strerror or error}"
        ) from error
    try:
        return parse_request(raw)
    except RequestError as error:
        raise RequestError(f"{path} {error}") from error


def parse_request(raw: bytes) -> SigningRequest:
    """A request from its bytes; its form is checked, and nothing that it says.

    Raises:
        RequestError: it is too large, or no signing request of the form that is known here.
    """
    if len(raw) > MAX_REQUEST_BYTES:
        raise RequestError(
            f"is larger than the {MAX_REQUEST_BYTES} bytes that a signing request may have"
        )
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestError("is no signing request: it is not JSON") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        found = str(body.get("format", "none"))[:80] if isinstance(body, dict) else "none"
        raise RequestError(
            f"is no signing request that is known here: its format is {found!r}, not {FORMAT!r}. Ask "
            "for a new one, or use the version of `fleet` that made it"
        )
    if set(body) - _OPTIONAL != _KEYS:
        strange = sorted((set(body) - _OPTIONAL) ^ _KEYS)[:5]
        raise RequestError(f"is no signing request: the keys {strange} are missing or unknown")
    return _form(_request, body)


def _form(make: Callable[[Any], T], value: object) -> T:
    try:
        return make(value)
    except (
        RepositoryError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError,
    ) as error:  # fmt: skip
        # Whatever the metadata's own parser trips over is a file that somebody has spoilt.
        said = f"{type(error).__name__}: {str(error)[:200]}"
        raise RequestError(f"is no signing request: it does not have the form ({said})") from error


def _request(body: dict[str, Any]) -> SigningRequest:
    role = body["role"]
    roots = [_metadata(root, Root) for root in _list(body["roots"])]
    targets = _metadata(body["targets"], Targets)
    base = roots[-1] if role == "root" else targets
    if role not in ("root", "targets"):
        base = _metadata(body["base"], Targets)
    created_s, expires_s = (_time(body[key]) for key in ("created_s", "expires_s"))
    request = SigningRequest(
        role=_text(role, 64),
        metadata=_metadata(body["metadata"], Root if role == "root" else Targets),
        chain=Chain(tuple(roots), targets, base),
        created_s=created_s,
        expires_s=expires_s,
        companions={
            _text(name, 64): _metadata(one, Targets) for name, one in body["companions"].items()
        },
        bases={_text(name, 64): _metadata(one, Targets) for name, one in body["bases"].items()},
        manifests={
            _text(path, 256): _text(raw, MAX_REQUEST_BYTES).encode()
            for path, raw in body["manifests"].items()
        },
        attestations={
            _text(path, 256): tuple(_text(raw, MAX_ATTESTATION_BYTES).encode() for raw in raws)
            for path, raws in body.get("attestations", {}).items()
        },
    )
    if request.chain.fleet != body["fleet"]:
        raise ValueError(f"it names the fleet {body['fleet']!r} and holds another one's roots")
    together = (*request.companions.values(), *request.bases.values())
    for metadata in (request.metadata, base, targets, *roots, *together):
        _ = metadata.signed_bytes  # what has no canonical form can be neither signed nor verified
    _ = request.says
    return request


def _metadata(value: Any, kind: type[Root] | type[Targets] | None = None) -> "Metadata[Any]":
    metadata: Metadata[Any] = Metadata.from_dict(json.loads(json.dumps(value)))  # it takes it apart
    if kind is not None and not isinstance(metadata.signed, kind):
        raise ValueError(f"{metadata.signed.type} metadata where {kind.type} metadata should be")
    return metadata


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_ROOTS:
        raise ValueError(f"it holds not 1 to {MAX_ROOTS} roots")
    return value


def _text(value: Any, most: int) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        raise ValueError(f"{str(value)[:40]!r} is no text of 1 to {most} characters")
    return value


def _time(value: Any) -> float:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LATEST_S:
        raise ValueError(f"{str(value)[:40]!r} is no time")
    return float(value)
