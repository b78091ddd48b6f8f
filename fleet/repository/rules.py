"""What the repository signs and what it refuses, as functions of values.

Rules kept here: devices would understand and read every file; a published bundle neither changes
nor vanishes by accident; a timestamp is short-lived while a rollout is under way.
"""

from collections.abc import Iterable
from typing import Final

from tuf.api.metadata import TargetFile, Targets

from agent.trust import Directive
from agent.trust.cohort import SLOTS
from agent.trust.limits import TrustLimits
from fleet.errors import RefusedError
from fleet.repository.generation import Generation, pack_of
from fleet.repository.roles import VALIDITY, expiry

__all__ = [
    "LIMITS",
    "check_fits",
    "check_kept",
    "directive_targets",
    "next_rollout",
    "timestamp_validity_s",
]

LIMITS: Final = TrustLimits()
"""What devices read at most."""


def directive_targets(directives: Iterable[Directive]) -> dict[str, TargetFile]:
    """The directives as targets of the rollout role, by path."""
    targets: dict[str, TargetFile] = {}
    for directive in directives:
        body = directive.to_json()
        path = Directive.from_json(body).target_path
        if path in targets:
            raise RefusedError(f"two directives have the id {directive.id}; a rollout has one")
        hashes = {"sha256": directive.sha256}
        targets[path] = TargetFile(directive.length, hashes, path, {"custom": body})
    return targets


def next_rollout(current: Targets, targets: dict[str, TargetFile], now_s: float) -> Targets:
    return Targets(current.version + 1, expires=expiry(now_s, VALIDITY.rollout_s), targets=targets)


def timestamp_validity_s(rollout: Targets) -> int:
    """Short while a rollout is under way: until the timestamp expires, a broker can hide a halt."""
    directives = [Directive.from_json(target.custom) for target in rollout.targets.values()]
    under_way = any(
        directive.kind == "deploy" and not directive.halt and directive.percent_bp < SLOTS
        for directive in directives
    )
    return VALIDITY.timestamp_under_way_s if under_way else VALIDITY.timestamp_s


def check_kept(current: Targets, following: Targets, removed: frozenset[str]) -> None:
    for path, target in current.targets.items():
        if path in removed:
            continue
        found = following.targets.get(path)
        if found is None:
            raise RefusedError(
                f"{path} is published and missing from the new release metadata; sign on top of "
                "the published one"
            )
        if found != target:
            raise RefusedError(
                f"{path} is published and says something else in the new release metadata; a "
                "published bundle does "
                f"not change, give it a new version"
            )


def check_fits(generation: Generation) -> None:
    """Refuse what devices would not read."""
    sizes = (
        ("directives", len(generation.roles["rollout"].content), LIMITS.targets_bytes),
        ("snapshot", len(generation.snapshot.content), LIMITS.snapshot_bytes),
        ("pack", len(pack_of(generation, LIMITS)), LIMITS.pack_bytes),
    )
    for what, size_bytes, limit_bytes in sizes:
        if size_bytes > limit_bytes:
            raise RefusedError(
                f"the {what} would be {size_bytes} bytes, more than the {limit_bytes} that devices "
                "read; end or "
                f"promote some rollouts first"
            )
