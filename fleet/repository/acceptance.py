"""Whether metadata that was signed elsewhere may follow what is published, as functions of values.

Rules kept here:

* It is checked as a device would check it, and more strictly: what devices would refuse, or pass over in silence, is
  refused here, with what to do.
* Each version follows exactly the one before, so that nothing signed on top of an older state slips in.
* A role speaks only for the paths that were delegated to it, and nobody can delegate past the names we know.
"""

from collections.abc import Mapping
from typing import Any, Final

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, Targets

from agent.trust.reading import FLEET_FIELD
from fleet.errors import ConflictError, RefusedError, RequestError
from fleet.repository.generation import Generation, SignedFile, delegated_roles, role_for
from fleet.repository.roles import DEVICE_CLASS, EMERGENCY, TOP_ROLES, is_release_role
from fleet.repository.rules import LIMITS

__all__ = [
    "check_delegations",
    "check_paths",
    "check_root",
    "check_signed",
    "check_size",
    "parse_role",
    "require_fresh",
    "require_kind",
    "require_next",
    "require_role",
    "stale_roles",
]

_KNOWN: Final = (EMERGENCY, "rollout")


def parse_role(role: str, raw: bytes) -> "Metadata[Any]":
    """A signed file, its form checked and nothing verified.

    Raises:
        RefusedError: it is not metadata of this role.
    """
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(raw)
    except RepositoryError as error:
        raise RefusedError(f"the {role} metadata cannot be read: {error}") from error
    require_kind(role, metadata.signed)
    return metadata


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


def check_size(role: str, size_bytes: int) -> None:
    """Refuse what devices would not read for its length.

    Raises:
        RefusedError: it is too large.
    """
    limit_bytes = LIMITS.root_bytes if role == "root" else LIMITS.targets_bytes
    if size_bytes > limit_bytes:
        raise RefusedError(
            f"the {role} metadata is {size_bytes} bytes, more than the {limit_bytes} that devices read; "
            "remove bundles that no device needs any more"
        )


def check_signed(
    current: Generation,
    role: str,
    metadata: "Metadata[Any]",
    now_s: float,
    top: Targets | None = None,
) -> None:
    """Refuse what is not signed by enough keys of the role, or holds no longer.

    Args:
        current: what is published.
        role: any role but the root.
        metadata: what was signed.
        now_s: the time, in seconds since the epoch.
        top: the targets role to verify a delegated role by, instead of the published one.

    Raises:
        RefusedError: says which.
    """
    by = current.root if role in TOP_ROLES else (top or current.targets("targets"))
    try:
        by.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        keys = "keys" if len(metadata.signatures) > 1 else "key"
        raise RefusedError(
            f"the {role} metadata is not signed by this fleet's {role} {keys}: {error}"
        ) from error
    require_fresh(role, metadata.signed, now_s)


def check_root(current: Generation, metadata: "Metadata[Any]", now_s: float) -> None:
    """Refuse a root that devices would not follow from the current one.

    Raises:
        RefusedError: too few keys of the old or of the new root have signed, it has expired, or is another fleet's.
        ConflictError: it is not the next version.
    """
    root, following = current.root, metadata.signed
    require_next("root", following.version, root.version)
    result = following.get_root_verification_result(
        root, metadata.signed_bytes, metadata.signatures
    )
    for verified, of in ((result.first, "current"), (result.second, "new")):
        if not verified:
            raise RefusedError(
                f"the root metadata is signed by {len(verified.signed)} of the {verified.threshold} "
                f"keys that the {of} root asks for"
            )
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
    """Refuse delegations that this fleet manager does not understand, and the loss of one that it needs.

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
    if "rollout" not in roles:
        raise RefusedError("targets delegates to no rollout role: no device could be directed")
    if following.targets:
        raise RefusedError("targets lists targets itself; it only delegates")
    if EMERGENCY in roles and list(roles).index(EMERGENCY) > list(roles).index("rollout"):
        raise RefusedError("targets lists rollout before emergency; emergency has to come first")


def stale_roles(top: Targets, roles: Mapping[str, SignedFile]) -> tuple[str, ...]:
    """The delegated roles of which there is no file that these delegations verify."""
    return tuple(role for role in delegated_roles(top) if not _verifies(top, role, roles.get(role)))


def _verifies(top: Targets, role: str, file: SignedFile | None) -> bool:
    if file is None:
        return False
    try:
        top.verify_delegate(role, file.metadata.signed_bytes, file.metadata.signatures)
    except (RepositoryError, ValueError):
        return False
    return True


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
