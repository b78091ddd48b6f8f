"""What makes a signing request one that may be signed, merged and handed in, as functions of values.

Rules kept here:

* Everything is checked by the chain in the request, from a root that the holder of a key has kept where there is one.
* A signature that is there must be over exactly these bytes, by a key that may sign: a file that was altered after
  somebody signed it is refused, not repaired.
* Only copies of the same request are merged: the same role, the same bytes.
* What comes along because its keys change says what is published already, for longer, and nothing else.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Key, Metadata, Root, Signed, Targets

from agent.bundle import parse_manifest
from agent.bundle.errors import ManifestError
from agent.runtime.verdict import clean_text
from agent.trust.release import BUNDLE_PREFIX
from fleet.claims.attestation import Attestation, attestation_digest
from fleet.errors import ConflictError, RefusedError, RequestError
from fleet.repository.acceptance import check_paths, require_fresh, require_kind
from fleet.repository.claims import Attestable, claims_rule, require_attested
from fleet.repository.generation import delegated_roles
from fleet.repository.keys import key_name
from fleet.repository.release import read_entries
from fleet.repository.request import SigningRequest
from fleet.repository.roles import ONLINE_ROLES, TOP_ROLES, is_release_role

__all__ = [
    "Need",
    "attestations_of",
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
        role: whose file is to be signed.
        by: the metadata that names the keys.
        threshold: how many signatures are needed.
        signed, missing: names of the keys that have signed, and that have not.
    """

    role: str
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
    for role, metadata in request.files.items():
        for by, delegator in _delegators(request, role).items():
            result = delegator.get_verification_result(
                role, metadata.signed_bytes, metadata.signatures
            )
            signed, missing = (
                tuple(sorted(key_name(key) for key in keys.values()))
                for keys in (result.signed, result.unsigned)
            )
            need = Need(role, by, result.threshold, signed, missing)
            if role == request.role or role in request.bases or need.left:
                needs.append(need)
    return tuple(needs)


def needs_words(needs: Sequence[Need]) -> str:
    """The same in one sentence."""
    parts = []
    for need in needs:
        said = f"{len(need.signed)} of {need.threshold} signatures"
        if len(needs) > 1:
            said += f" that the {need.by} asks for"
            said += f" under {need.role}" if need.role != needs[0].role else ""
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
    _check_companions(request)
    for role, metadata in request.files.items():
        require_fresh(role, metadata.signed, now_s)
        _check_signatures(request, role, metadata)
    _check_manifests(request)
    attestations_of(request)


def attestations_of(request: SigningRequest) -> dict[str, tuple[Attestation, ...]]:
    """What attests the checks of each new bundle, by path, checked by the rule of the targets role in the chain.

    Raises:
        RefusedError: an attestation is missing, does not hold or is not the bundle's; says which and why.
    """
    fresh = _new_bundles(request)
    if set(request.attestations) - set(fresh):
        raise _altered("it carries attestations of a bundle that is not new in it")
    if not fresh:
        return {}
    rule = claims_rule(request.chain.targets.signed)
    entries = read_entries(request.metadata.signed)
    found = {}
    for path in fresh:
        carried = request.attestations.get(path, ())
        if {attestation_digest(raw) for raw in carried} - set(entries[path].attestations):
            raise _altered(f"it carries an attestation of {path} that is not to be signed")
        found[path] = require_attested(rule, Attestable.of(entries[path]), carried)
    return found


def with_signature(request: SigningRequest, signer: Signer) -> SigningRequest:
    """The request signed by one key more, each file that it may sign; the same request where it has signed already.

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
    files: dict[str, Metadata[Any]] = {}
    for role, metadata in request.files.items():
        files[role] = metadata
        if keyid in _keys_of(request, role) and keyid not in metadata.signatures:
            files[role] = Metadata.from_dict(metadata.to_dict())
            files[role].sign(signer, append=True)
    if all(files[role] is metadata for role, metadata in request.files.items()):
        return request
    return _with_files(request, files)


def merged(requests: Sequence[SigningRequest]) -> SigningRequest:
    """Copies of one request as one, with the signatures of all.

    Raises:
        ConflictError: they are not copies of one request.
    """
    first, *others = requests
    files: dict[str, Metadata[Any]] = {
        role: Metadata.from_dict(metadata.to_dict()) for role, metadata in first.files.items()
    }
    for other in others:
        if other.role != first.role or _contents(other) != _contents(first):
            raise ConflictError(
                f"these are not copies of one request: one is {first.role} version {first.version}, "
                f"another is {other.role} version {other.version} or says something else. Merge the "
                "copies of one request, and each request on its own"
            )
        for role, metadata in other.files.items():
            files[role].signatures.update(metadata.signatures)
    return _with_files(first, files)


def signed_by(request: SigningRequest) -> tuple[str, ...]:
    """Names of the keys that have signed."""
    keys = signers_of(request)
    signed = {keyid for metadata in request.files.values() for keyid in metadata.signatures}
    return tuple(sorted(key_name(keys[keyid]) for keyid in signed))


def signers_of(request: SigningRequest) -> dict[str, Key]:
    """Every key that may sign something in this request, by id."""
    return {keyid: key for role in request.files for keyid, key in _keys_of(request, role).items()}


def _keys_of(request: SigningRequest, role: str) -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for delegator in _delegators(request, role).values():
        for keyid in delegator.get_delegated_role(role).keyids:
            if keyid in _keys(delegator):
                keys[keyid] = delegator.get_key(keyid)
    return keys


def _with_files(request: SigningRequest, files: "Mapping[str, Metadata[Any]]") -> SigningRequest:
    companions = {role: metadata for role, metadata in files.items() if role != request.role}
    return replace(request, metadata=files[request.role], companions=companions)


def _contents(request: SigningRequest) -> dict[str, bytes]:
    return {role: metadata.signed_bytes for role, metadata in request.files.items()}


# --- the checks -----------------------------------------------------------------------------------


def _delegators(request: SigningRequest, role: str) -> Mapping[str, Root | Targets]:
    """The metadata that says whose signatures count under a role's file."""
    chain = request.chain
    if role != request.role:
        by = "new root" if request.role == "root" else "new targets role"
        return {by: request.metadata.signed}
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


def _check_companions(request: SigningRequest) -> None:
    """A file that comes along is the first of a new role, or the published one for longer."""
    may_come = {"targets"} if request.role == "root" else set()
    if request.role == "targets":
        may_come = set(delegated_roles(request.metadata.signed))
    stray = sorted(
        (set(request.companions) - may_come) | (set(request.bases) - set(request.companions))
    )
    if stray:
        raise _altered(f"{', '.join(stray)[:80]} does not belong to {request.role}")
    for role, metadata in request.companions.items():
        if role in ONLINE_ROLES:
            raise RefusedError(f"{role} is signed by `fleet serve` alone, never on request")
        require_kind(role, metadata.signed)
        base = request.bases.get(role)
        if base is None and role in _published_roles(request):
            raise _altered(f"the published version of {role} is not in it")
        if base is None:
            _verify(
                request.metadata.signed, role, metadata, f"the {role} metadata that comes along"
            )
            continue
        by = request.chain.roots[-1].signed if role in TOP_ROLES else request.chain.targets.signed
        _verify(by, role, base, f"the published version of {role} in it")
        if _but_for_the_time(metadata.signed, 0) != _but_for_the_time(base.signed, 1):
            raise _altered(f"the {role} metadata that comes along says more than is published")


def _published_roles(request: SigningRequest) -> set[str]:
    return {"targets", *delegated_roles(request.chain.targets.signed)}


def _but_for_the_time(signed: Signed, later: int) -> dict[str, Any]:
    """What metadata says, without its expiry, as the version that is ``later``."""
    return {**signed.to_dict(), "version": signed.version + later, "expires": ""}


def _check_signatures(request: SigningRequest, role: str, metadata: "Metadata[Any]") -> None:
    keys = _keys_of(request, role)
    for keyid, signature in metadata.signatures.items():
        if keyid not in keys:
            raise RefusedError(
                f"the request carries a signature of key {keyid[:12]}, which may not sign {role}"
            )
        try:
            keys[keyid].verify_signature(signature, metadata.signed_bytes)
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
    after = request.metadata.signed.targets
    if set(_new_bundles(request)) != set(request.manifests):
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


def _new_bundles(request: SigningRequest) -> tuple[str, ...]:
    if not is_release_role(request.role):
        return ()
    before, after = request.chain.base.signed.targets, request.metadata.signed.targets
    return tuple(
        path for path in sorted(after) if path not in before and path.startswith(BUNDLE_PREFIX)
    )


def _altered(how: str) -> RefusedError:
    return RefusedError(
        f"this signing request does not hold together: {clean_text(how)}. It was damaged or altered on its way: "
        "ask for a new one"
    )
