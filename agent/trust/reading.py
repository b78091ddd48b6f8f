"""Directives and releases in a state that a refresh has just verified.

Rules kept here:

* A role speaks only for the paths that were delegated to it: a release under ``rollouts/``, or a
  directive in the release role, is not there.
* An entry that this agent does not understand is left out and named, so that one of them neither
  stops the device from obeying a halt beside it nor is obeyed by half.
* The same bytes always read the same: call these only with a state that a refresh returned.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

from tuf.api.metadata import Delegations

from agent.trust.directive import ROLLOUT_PREFIX, Directive
from agent.trust.emergency import (
    EMERGENCY_PATH,
    EMERGENCY_ROLE,
    Emergencies,
    Emergency,
    check_target,
    combine,
)
from agent.trust.errors import MalformedError
from agent.trust.release import BUNDLE_PREFIX, BundleRelease
from agent.trust.state import TrustState

__all__ = [
    "Reading",
    "directives",
    "emergencies",
    "expires_s",
    "fleet_name",
    "read_directives",
    "read_emergencies",
    "read_releases",
    "releases",
]

FLEET_FIELD: Final = "x-muster-fleet"
"""Field of the root: the name of the fleet."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What a role says: entries understood, by path, and for each other path why not."""

    entries: dict[str, T]
    unreadable: dict[str, str]


def directives(state: TrustState) -> tuple[Directive, ...]:
    """The directives, newest number first."""
    found = read_directives(state).entries.values()
    return tuple(sorted(found, key=lambda directive: (-directive.number, directive.id)))


def releases(state: TrustState) -> dict[str, BundleRelease]:
    """The releases by path."""
    return read_releases(state).entries


def read_directives(state: TrustState) -> Reading[Directive]:
    """The directives by path, and what could not be read."""
    return _read(state, _is_directive, _directive)


def read_releases(state: TrustState) -> Reading[BundleRelease]:
    """The releases by path, and what could not be read."""
    return _read(state, _is_release, _release)


def read_emergencies(state: TrustState) -> Reading[Emergency]:
    """The emergency role's entries by path, and what could not be read. The role may have expired."""
    return _read(state, _is_emergency, _emergency)


def emergencies(state: TrustState) -> Emergencies:
    """What the emergency role says, as one value."""
    name = f"{EMERGENCY_ROLE}.json"
    until_s = expires_s(state, name) if name in state.files else 0.0
    return combine(read_emergencies(state).entries.values(), until_s)


def expires_s(state: TrustState, name: str) -> float:
    """When a file of the state expires, in seconds since the epoch."""
    text = json.loads(state.files[name])["signed"]["expires"]
    return datetime.fromisoformat(text).timestamp()


def fleet_name(root: bytes) -> str:
    """The name of the fleet that a root is of; empty when it does not say."""
    return str(json.loads(root)["signed"].get(FLEET_FIELD, ""))


def _is_release(path: str) -> bool:
    return path.startswith(BUNDLE_PREFIX)


def _is_directive(path: str) -> bool:
    return path.startswith(ROLLOUT_PREFIX) and not _is_emergency(path)


def _is_emergency(path: str) -> bool:
    return EMERGENCY_PATH.fullmatch(path) is not None


def _read(
    state: TrustState, wanted: Callable[[str], bool], parse: Callable[[str, dict[str, Any]], T]
) -> Reading[T]:
    reading: Reading[T] = Reading({}, {})
    for path, target in _delegated_targets(state, wanted):
        try:
            reading.entries[path] = parse(path, target)
        except MalformedError as error:
            reading.unreadable[path] = str(error)  # the caller tells; the other entries still hold
    return reading


def _delegated_targets(
    state: TrustState, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each target that is ``wanted``, in the role that the targets role trusts first for its path."""
    if "targets.json" not in state.files:
        return
    top = json.loads(state.files["targets.json"])["signed"]
    if "delegations" not in top:
        return
    delegations = Delegations.from_dict(top["delegations"])
    for role in delegations.roles or {}:
        content = state.files.get(f"{role}.json")
        if content is None:
            continue  # not asked for in the refresh, so it answers for neither kind of path
        for path, target in json.loads(content)["signed"]["targets"].items():
            first = next(iter(delegations.get_roles_for_target(path)), None)
            if wanted(path) and first is not None and first[0] == role:
                yield path, target


def _directive(path: str, target: dict[str, Any]) -> Directive:
    directive = Directive.from_json(target.get("custom"))
    signed = (path, target["length"], target["hashes"].get("sha256"))
    if signed != (directive.target_path, directive.length, directive.sha256):
        raise MalformedError(
            f"directive {path!r} says one thing in its target and another in its body"
        )
    return directive


def _emergency(path: str, target: dict[str, Any]) -> Emergency:
    return check_target(
        path, target["length"], target["hashes"].get("sha256"), target.get("custom")
    )


def _release(path: str, target: dict[str, Any]) -> BundleRelease:
    return BundleRelease.from_target(
        path, target["hashes"].get("sha256"), target["length"], target.get("custom")
    )
