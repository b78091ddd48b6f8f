"""What makes a signing request one that may be signed, merged and handed in, as functions of values.

Rules kept here:

* Everything is checked by the chain in the request, from a root that the holder of a key has kept where there is one.
* A signature that is there must be over exactly these bytes, by a key that may sign: a file that was altered after
  somebody signed it is refused, not repaired.
* Only copies of the same request are merged: the same role, the same bytes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Key, Metadata, Root, Targets

from agent.bundle import parse_manifest
from agent.bundle.errors import ManifestError
from agent.runtime.verdict import clean_text
from agent.trust.release import BUNDLE_PREFIX
from fleet.errors import ConflictError, RefusedError, RequestError
from fleet.repository.acceptance import check_paths, require_fresh, require_kind
from fleet.repository.keys import key_name
from fleet.repository.request import SigningRequest
from fleet.repository.roles import ONLINE_ROLES, TOP_ROLES, is_release_role

__all__ = [
    "Need",
    "check_request",
    "merged",
    "needs_of",
    "needs_words",
    "signed_by",
    "signers_of",
    "with_signature",
]


@dataclass(frozen=True, slots=True)
class Need:
    """Whose signatures a request asks for.

    Attributes:
        by: the metadata that names the keys.
        threshold: how many signatures are needed.
        signed, missing: names of the keys that have signed, and that have not.
    """

    by: str
    threshold: int
    signed: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def left(self) -> int:
        """How many signatures are still wanted."""
        return max(0, self.threshold - len(self.signed))


def needs_of(request: SigningRequest) -> tuple[Need, ...]:
    """The signatures that are asked for; two entries for a root, which the old and the new keys sign."""
    needs = []
    for by, delegator in _delegators(request).items():
        result = delegator.get_verification_result(
            request.role, request.metadata.signed_bytes, request.metadata.signatures
        )
        signed, missing = (
            tuple(sorted(key_name(key) for key in keys.values()))
            for keys in (result.signed, result.unsigned)
        )
        needs.append(Need(by, result.threshold, signed, missing))
    return tuple(needs)


def needs_words(needs: Sequence[Need]) -> str:
    """The same in one sentence."""
    parts = []
    for need in needs:
        said = f"{len(need.signed)} of {need.threshold} signatures"
        if len(needs) > 1:
            said += f" that the {need.by} asks for"
        if need.signed:
            said += f" (by {', '.join(need.signed)})"
        if need.left:
            said += f"; {need.left} more of {', '.join(need.missing) or 'no key'}"
        parts.append(said)
    return "; ".join(parts)


def check_request(request: SigningRequest, now_s: float, pinned_root: bytes | None = None) -> None:
    """Refuse what must be neither signed nor merged.

    Args:
        request: as it was read.
        now_s: the time, in seconds since the epoch.
        pinned_root: a root of the fleet that the caller has kept; None believes the roots in the request.

    Raises:
        RequestError: the pinned root cannot be read.
        RefusedError: the chain does not hold, another fleet asks, something was altered, or it has expired.
    """
    if request.role in ONLINE_ROLES:
        raise RefusedError(f"{request.role} is signed by `fleet serve` alone, never on request")
    _check_chain(request)
    if pinned_root is not None:
        _check_pinned(request, pinned_root)
    if now_s >= request.expires_s:
        raise RefusedError(
            "this signing request has expired: ask for a new one, what it was made for may have changed"
        )
    require_kind(request.role, request.metadata.signed)
    _check_next(request)
    require_fresh(request.role, request.metadata.signed, now_s)
    _check_signatures(request)
    _check_manifests(request)
    for role, companion in request.companions.items():
        _verify(request.metadata.signed, role, companion, f"the {role} metadata that comes with it")


def with_signature(request: SigningRequest, signer: Signer) -> SigningRequest:
    """The request with one signature more; the same request where this key has signed already.

    Raises:
        RefusedError: the key may not sign this role.
    """
    keyid = signer.public_key.keyid
    keys = signers_of(request)
    if keyid not in keys:
        may = ", ".join(sorted(key_name(key) for key in keys.values()))
        raise RefusedError(
            f"this key ({keyid[:12]}) may not sign {request.role} of fleet {request.chain.fleet}: "
            f"those that may are {may}"
        )
    if keyid in request.metadata.signatures:
        return request
    metadata: Metadata[Any] = Metadata.from_dict(request.metadata.to_dict())
    metadata.sign(signer, append=True)
    return replace(request, metadata=metadata)


def merged(requests: Sequence[SigningRequest]) -> SigningRequest:
    """Copies of one request as one, with the signatures of all.

    Raises:
        ConflictError: they are not copies of one request.
    """
    first, *others = requests
    metadata: Metadata[Any] = Metadata.from_dict(first.metadata.to_dict())
    for other in others:
        if other.role != first.role or other.metadata.signed_bytes != metadata.signed_bytes:
            raise ConflictError(
                f"these are not copies of one request: one is {first.role} version {first.version}, "
                f"another is {other.role} version {other.version} or says something else. Merge the "
                "copies of one request, and each request on its own"
            )
        metadata.signatures.update(other.metadata.signatures)
    return replace(first, metadata=metadata)


def signed_by(request: SigningRequest) -> tuple[str, ...]:
    """Names of the keys that have signed."""
    keys = signers_of(request)
    return tuple(sorted(key_name(keys[keyid]) for keyid in request.metadata.signatures))


def signers_of(request: SigningRequest) -> dict[str, Key]:
    """Every key that may sign this request, by id."""
    keys: dict[str, Key] = {}
    for delegator in _delegators(request).values():
        for keyid in delegator.get_delegated_role(request.role).keyids:
            if keyid in _keys(delegator):
                keys[keyid] = delegator.get_key(keyid)
    return keys


# --- the checks -----------------------------------------------------------------------------------


def _delegators(request: SigningRequest) -> Mapping[str, Root | Targets]:
    """The metadata that says whose signatures count."""
    chain, role = request.chain, request.role
    if role == "root":
        return {"current root": chain.roots[-1].signed, "new root": request.metadata.signed}
    if role in TOP_ROLES:
        return {"root": chain.roots[-1].signed}
    return {"targets role": chain.targets.signed}


def _keys(delegator: Root | Targets) -> Mapping[str, Key]:
    if isinstance(delegator, Root):
        return delegator.keys
    return delegator.delegations.keys if delegator.delegations else {}


def _check_chain(request: SigningRequest) -> None:
    chain = request.chain
    previous: Root | None = None
    for root in chain.roots:
        try:
            result = root.signed.get_root_verification_result(
                previous, root.signed_bytes, root.signatures
            )
        except ValueError as error:
            raise _altered("its roots do not follow each other") from error
        if not result:
            raise _altered(f"root {root.signed.version} in it is not signed by enough keys")
        previous = root.signed
    newest = chain.roots[-1].signed
    _verify(newest, "targets", chain.targets, "the targets role in it")
    if request.role not in ("root", "targets"):
        _verify(chain.targets.signed, request.role, chain.base, "the published version in it")
        if chain.base.signed.delegations is not None:
            raise _altered("the published version in it delegates")


def _verify(by: Root | Targets, role: str, metadata: "Metadata[Any]", what: str) -> None:
    try:
        by.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        raise _altered(f"{what} is not signed by enough of its keys ({error})") from error


def _check_pinned(request: SigningRequest, raw: bytes) -> None:
    try:
        pinned: Metadata[Any] = Metadata.from_bytes(raw)
    except RepositoryError as error:
        raise RequestError(f"the root to check by cannot be read: {error}") from error
    same = [root for root in request.chain.roots if root.signed_bytes == pinned.signed_bytes]
    if not same:
        raise RefusedError(
            "this request does not come from the fleet whose root you gave: none of the roots in it is "
            f"that one (version {pinned.signed.version}). Do not sign it before you know who made it"
        )


def _check_next(request: SigningRequest) -> None:
    base, version = request.chain.base.signed, request.version
    if version != base.version + 1:
        raise _altered(f"version {version} does not follow the published version {base.version}")
    if isinstance(request.metadata.signed, Targets) and request.role != "targets":
        check_paths(request.chain.targets.signed, request.role, request.metadata.signed)


def _check_signatures(request: SigningRequest) -> None:
    keys = signers_of(request)
    for keyid, signature in request.metadata.signatures.items():
        if keyid not in keys:
            raise RefusedError(
                f"the request carries a signature of key {keyid[:12]}, which may not sign {request.role}"
            )
        try:
            keys[keyid].verify_signature(signature, request.metadata.signed_bytes)
        except (UnverifiedSignatureError, VerificationError) as error:
            raise _altered(
                f"the signature of {key_name(keys[keyid])} is over other bytes"
            ) from error


def _check_manifests(request: SigningRequest) -> None:
    """Each bundle that is new must come with its manifest, and with no other one."""
    if not is_release_role(request.role):
        if request.manifests:
            raise _altered(f"it carries manifests, and {request.role} releases no bundle")
        return
    before, after = request.chain.base.signed.targets, request.metadata.signed.targets
    fresh = {path for path in after if path not in before and path.startswith(BUNDLE_PREFIX)}
    if fresh != set(request.manifests):
        raise _altered("the manifests in it are not those of the bundles that are new")
    for path, raw in request.manifests.items():
        if hashlib.sha256(raw).hexdigest() != after[path].hashes.get("sha256"):
            raise _altered(f"the manifest of {path} in it is not the one to be signed")
        try:
            described = parse_manifest(raw).path
        except ManifestError as error:
            raise RefusedError(f"the manifest of {path[:200]!r} cannot be read: {error}") from error
        if described != path:
            raise _altered(f"the manifest of {path} in it describes {described}")


def _altered(how: str) -> RefusedError:
    return RefusedError(
        f"this signing request does not hold together: {clean_text(how)}. It was damaged or altered on its way: "
        "ask for a new one"
    )
