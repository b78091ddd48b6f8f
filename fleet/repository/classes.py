"""A device class added later: its release keys, an empty release role, and the request that delegates to it.

Rules kept here: keys are made only once everything else is known to be right; the new role stands before every role
that stood there, and comes with a first version that its own keys have signed.
"""

from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Targets

from fleet.errors import ConflictError, RefusedError
from fleet.repository.create import create_keys, delegate, sign_with
from fleet.repository.generation import role_for
from fleet.repository.request import LIFE_S, Chain, SigningRequest, next_version
from fleet.repository.roles import expiry, release_plan, validity_s

__all__ = ["request_class"]


def request_class(
    home: Path, device_class: str, chain: Chain, now_s: float, password: bytes | None = None
) -> SigningRequest:
    """Make the keys of a new class in ``keys/offline/``, and ask the targets keys to delegate to them.

    Args:
        home: the fleet folder.
        device_class: the new class.
        chain: what is published of targets.
        now_s: the time of signing, in seconds since the epoch.
        password: encrypts the new keys.

    Raises:
        ConfigError: the class has no usable name.
        ConflictError: it has a release role already, or there are keys for it already.
        RefusedError: one release role speaks for every class in this fleet.
        ServerError: a key cannot be stored.
    """
    plan = release_plan(device_class)
    speaks = role_for(chain.targets.signed, f"bundles/{device_class}/-")
    if speaks == plan.name:
        raise ConflictError(f"{plan.name} exists already: it speaks for class {device_class}")
    if speaks is not None:
        raise RefusedError(
            f"in this fleet the role {speaks} speaks for every class, {device_class} too: publish with its key. "
            "Release roles of single classes come with `fleet init --production`"
        )
    following = next_version("targets", chain.base, now_s)
    keys = create_keys(home, plan, password)
    targets: Targets = following.signed
    delegate(targets, plan, keys)
    delegations = targets.delegations
    assert delegations is not None
    assert delegations.roles is not None
    delegations.roles = {plan.name: delegations.roles.pop(plan.name), **delegations.roles}
    first = Targets(expires=expiry(now_s, validity_s(plan.name)))
    companion: Metadata[Any] = Metadata.from_bytes(sign_with(first, keys))
    return SigningRequest(
        "targets",
        following,
        chain,
        float(int(now_s)),
        float(int(now_s)) + LIFE_S,
        companions={plan.name: companion},
    )
