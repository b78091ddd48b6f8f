"""What the emergency role is to say, as functions of values: block a bundle, lift its speed limits, take either back.

Rules kept here: devices would understand every entry; one entry holds it all, so that nothing is forgotten beside it;
what is blocked stays blocked until it is taken back by name.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from tuf.api.metadata import TargetFile, Targets

from agent.trust import Emergency
from agent.trust.emergency import check_target
from agent.trust.errors import MalformedError
from fleet.errors import RefusedError
from fleet.repository.roles import expiry

__all__ = [
    "EMERGENCY_S",
    "EmergencyChange",
    "emergency_target",
    "emergency_words",
    "lifted_at",
    "next_emergency",
    "read_entry",
]

EMERGENCY_S: Final = 30 * 86_400
"""How long the role's signature holds, in seconds. Blocks hold beyond it, lifted limits do not."""
ENTRY_ID: Final = "fleet"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmergencyChange:
    """What to add and what to take back, by manifest digest; ``block`` says why for each."""

    block: Mapping[str, str] = field(default_factory=dict)
    unblock: Collection[str] = ()
    lift: Collection[str] = ()
    unlift: Collection[str] = ()


def emergency_target(entry: Emergency) -> TargetFile:
    """The entry as a target of the emergency role: its length and digest are those of its own body."""
    body = entry.body
    digest = hashlib.sha256(body).hexdigest()
    return TargetFile(len(body), {"sha256": digest}, entry.target_path, {"custom": entry.to_json()})


def read_entry(role: Targets | None) -> Emergency:
    """What the role says now; an empty entry where it says nothing.

    Raises:
        RefusedError: it holds what devices would not understand.
    """
    if role is None or not role.targets:
        return Emergency(id=ENTRY_ID)
    try:
        entries = [
            check_target(path, target.length, target.hashes.get("sha256"), target.custom)
            for path, target in role.targets.items()
        ]
    except MalformedError as error:
        raise RefusedError(f"devices would not understand the emergency role: {error}") from error
    blocked: dict[str, str] = {}
    for entry in entries:
        blocked |= entry.blocked
    lifted = {digest for entry in entries for digest in entry.lifted}
    return Emergency(id=ENTRY_ID, blocked=blocked, lifted=tuple(sorted(lifted)))


def lifted_at(role: Targets, now_s: float) -> frozenset[str]:
    """Manifests whose speed limits do not hold then; none once the role has expired, or where it cannot be read."""
    if now_s >= role.expires.timestamp():
        return frozenset()
    try:
        return frozenset(read_entry(role).lifted)
    except RefusedError:
        return frozenset()


def emergency_words(before: Targets, after: Targets) -> list[str] | None:
    """What differs between two versions of the role, a line for each bundle that is spoken of.

    None where these words would leave something out: other targets than the one entry that is written here, or an
    entry that an agent of today would understand in part.
    """
    targets = [*before.targets.items(), *after.targets.items()]
    own = Emergency(id=ENTRY_ID)
    if not targets or any(
        path != own.target_path or set(target.custom or ()) != set(own.to_json())
        for path, target in targets
    ):
        return None
    try:
        held, now = read_entry(before), read_entry(after)
    except RefusedError:
        return None
    lines = [
        f"BLOCKS the bundle with the manifest {digest}: {why or 'no reason given'}"
        for digest, why in sorted(now.blocked.items())
        if held.blocked.get(digest) != why
    ]
    lifted, back = {*now.lifted} - {*held.lifted}, {*held.lifted} - {*now.lifted}
    lines += [f"LIFTS the speed limits of the manifest {digest}" for digest in sorted(lifted)]
    unblocked = sorted({*held.blocked} - {*now.blocked})
    lines += [f"takes the block of the manifest {digest} BACK" for digest in unblocked]
    return lines + [f"lets the speed limits of {digest} hold again" for digest in sorted(back)]


def next_emergency(role: Targets | None, change: EmergencyChange, now_s: float) -> Targets:
    """The next version of the emergency role, unsigned.

    Args:
        role: the role as it is signed now; None where there is none yet.
        change: what is to be different.
        now_s: time of signing, in seconds since the epoch.

    Raises:
        RefusedError: the change is not one that devices would understand, or takes back what is not there.
    """
    held = read_entry(role)
    missing = sorted({*change.unblock} - {*held.blocked} | {*change.unlift} - {*held.lifted})
    if missing:
        raise RefusedError(f"the emergency role does not speak of {', '.join(missing)}")
    blocked = {**held.blocked, **change.block}
    entry = Emergency(
        id=ENTRY_ID,
        blocked={digest: why for digest, why in blocked.items() if digest not in change.unblock},
        lifted=tuple(sorted({*held.lifted, *change.lift} - {*change.unlift})),
        signed_at_s=int(now_s),
    )
    try:
        Emergency.from_json(entry.to_json())
    except MalformedError as error:
        raise RefusedError(f"devices would not understand it: {error}") from error
    version = 1 if role is None else role.version + 1
    target = emergency_target(entry)
    return Targets(version, expires=expiry(now_s, EMERGENCY_S), targets={target.path: target})
