"""Whether metadata that was signed elsewhere may follow what is published, as functions of values.

Rules kept here:

* It is checked as a device would check it, and more strictly: what devices would refuse, or pass over in silence, is
  refused here, with what to do.
* Each version follows exactly the one before, so that nothing signed on top of an older state slips in.
* A role speaks only for the paths that were delegated to it, and nobody can delegate past the names we know.
"""

from typing import Any, Final

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, Targets

from agent.trust.reading import FLEET_FIELD
from fleet.errors import ConflictError, RefusedError, RequestError
from fleet.repository.claims import claims_rule
from fleet.repository.generation import Generation, SignedFile, delegated_roles, role_for
from fleet.repository.roles import DEVICE_CLASS, EMERGENCY, is_release_role
from fleet.repository.rotation import Lack, lacks_of_root
from fleet.repository.rules import LIMITS

__all__ = [
    "check_delegations",
    "check_paths",
    "check_root",
    "parse_role",
    "require_fresh",
    "require_kind",
    "require_next",
    "require_role",
    "require_signed",
]

_KNOWN: Final = (EMERGENCY, "rollout")


def parse_role(role: str, raw: bytes) -> SignedFile:
    """A signed file, its size and form checked and nothing verified.

    Raises:
        RefusedError: it is larger than devices read, or not metadata of this role.
    """
    limit_bytes = LIMITS.root_bytes if role == "root" else LIMITS.targets_bytes
    if len(raw) > limit_bytes:
        raise RefusedError(
            f"the {role} metadata is {len(raw)} bytes, more than the {limit_bytes} that devices read; "
            "remove bundles that no device needs any more"
        )
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(raw)
        _ = metadata.signed_bytes  # what has no canonical form can be neither signed nor verified
    except RepositoryError as error:
        raise RefusedError(f"the {role} metadata cannot be read: {error}") from error
    require_kind(role, metadata.signed)
    return SignedFile(metadata, raw)


def require_kind(role: str, signed: Signed) -> None:
    """Refuse what another role would sign.

    Raises:
        RefusedError: it is not the kind of metadata that this role signs.
    """
    kind = Root if role == "root" else Targets
    if not isinstance(signed, kind):
        raise RefusedError(f"that is {signed.type} metadata; {role} signs {kind.type} metadata")
    if isinstance(signed, Targets) and (signed.delegations is not None) != (role == "targets"):
        raise RefusedError(
            f"that is no {role} metadata: only targets delegates, and it always does"
        )


def require_next(role: str, version: int, current: int) -> None:
    """Refuse all but the version after the current one.

    Raises:
        ConflictError: it is another one.
    """
    if version != current + 1:
        raise ConflictError(
            f"the {role} metadata is version {version}; the next is {current + 1}. It was made for "
            "another state of the fleet. A bundle: publish again, which makes a new request; anything "
            f"else: `fleet key request {role}`. Then have that signed"
        )


def require_signed(role: str, lacks: tuple[Lack, ...]) -> None:
    """Refuse what too few keys have signed.

    Raises:
        RefusedError: names the keys whose signatures are missing.
    """
    if lacks:
        raise RefusedError(
            f"the {role} metadata is not signed by this fleet's {role} keys: "
            f"{'; '.join(str(lack) for lack in lacks)}. Hand it in when they have signed, with everything "
            "that its new keys change"
        )


def check_root(root: Root, metadata: "Metadata[Root]", now_s: float) -> None:
    """Refuse a root that devices would not follow from the current one.

    Raises:
        RefusedError: too few keys of the old or of the new root have signed, it has expired, or is another fleet's.
        ConflictError: it is not the next version.
    """
    following = metadata.signed
    require_next("root", following.version, root.version)
    require_signed("root", lacks_of_root(root, metadata))
    require_fresh("root", following, now_s)
    fields = (root.unrecognized_fields, following.unrecognized_fields)
    if fields[0].get(FLEET_FIELD) != fields[1].get(FLEET_FIELD):
        raise RefusedError("the new root names another fleet; devices know this one by its name")
    if not following.consistent_snapshot:
        raise RefusedError("the new root has no consistent snapshots; this repository has")


def require_fresh(role: str, signed: Signed, now_s: float) -> None:
    """Refuse what has expired.

    Raises:
        RefusedError: it has.
    """
    if signed.expires.timestamp() <= now_s:
        raise RefusedError(f"the {role} metadata has expired already; sign it again")


def check_paths(top: Targets, role: str, signed: Targets) -> None:
    """Refuse entries for which devices would ask another role: they would never be found.

    Raises:
        RefusedError: names the first such path, and who speaks for it.
    """
    for path in signed.targets:
        speaks = role_for(top, path)
        if speaks != role:
            whose = f"{speaks} speaks for it" if speaks else "nobody speaks for it"
            raise RefusedError(f"{role} cannot say anything of {path[:200]!r}: {whose}")


def check_delegations(current: Targets, following: Targets) -> None:
    """Refuse delegations and a rule about attestations that are not understood here, and the loss of a delegation.

    Raises:
        RefusedError: says which.
    """
    roles = (following.delegations and following.delegations.roles) or {}
    for name, role in roles.items():
        allowed = name in _KNOWN or name in delegated_roles(current) or _is_class_role(name)
        if not allowed:
            raise RefusedError(
                f"targets delegates to a role {name[:80]!r}, which nobody here understands"
            )
        if len(set(role.keyids)) < role.threshold:
            raise RefusedError(
                f"{name} asks for {role.threshold} signatures and has {len(role.keyids)} keys"
            )
    gone = [name for name in delegated_roles(current) if name not in roles]
    if gone:
        raise RefusedError(
            f"targets no longer speaks of {', '.join(gone)}: what that role says would be lost to devices"
        )
    claims_rule(following)
    if following.targets:
        raise RefusedError("targets lists targets itself; it only delegates")
    if EMERGENCY in roles and list(roles).index(EMERGENCY) > list(roles).index("rollout"):
        raise RefusedError("targets lists rollout before emergency; emergency has to come first")


def _is_class_role(name: str) -> bool:
    if not is_release_role(name) or "-" not in name:
        return False
    return DEVICE_CLASS.fullmatch(name.partition("-")[2]) is not None


def require_role(generation: Generation, role: str) -> SignedFile:
    """The newest file of a role that people sign.

    Raises:
        RequestError: the fleet has no such role, or the server signs it itself.
    """
    if role == "root":
        return generation.roots[-1]
    if role in generation.roles and role != "rollout":
        return generation.roles[role]
    known = ", ".join(("root", *(name for name in generation.roles if name != "rollout")))
    raise RequestError(
        f"{role[:80]!r} is no role that people sign here (those are {known}); what is signed "
        "often, `fleet serve` signs itself"
    )
