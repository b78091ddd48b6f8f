"""Leaving a bundle: because the fleet rolled it back, or because it is on the block list. Pure.

Rules kept here:

* A device goes to the bundle of an older directive that it may have, or else to its previous slot; where there is
  neither it stays, and says so: serving something bad beats serving nothing.
* Going back to the device's own previous slot needs no release above the floor; going anywhere else does. Neither
  way leads to a bundle that was withdrawn or is blocked.
* A blocked bundle is left for the previous slot at once, whatever the directives say of it: nothing has to be fetched.
"""

from collections.abc import Sequence

from agent.trust.decision import CurrentModel, Decision, Reason, Verb
from agent.trust.directive import Directive
from agent.trust.meant import left_out, not_meant, takes_back, too_early
from agent.trust.obstacles import obstacle
from agent.trust.release import BundleRelease
from agent.trust.turns import stratum_of
from agent.trust.world import Finding, World

__all__ = ["is_blocked", "judge_rollback", "leave_blocked"]


def judge_rollback(
    world: World, have: CurrentModel, from_here: Sequence[Directive], withdrawn: frozenset[str]
) -> Finding:
    """What a rollback says: leave its bundle for an older directive's or the previous slot."""
    directive, older = from_here[0], from_here[1:]
    stopped = directive.kind != "rollback"
    if directive.sha256 not in (have.active_sha256, have.pending_sha256):
        reason = Reason.STRATUM_STOPPED if stopped else Reason.WITHDRAWN
        what = f"stopped for {stratum_of(world.facts)}" if stopped else "rolled back"
        text = f"{directive.bundle} was {what}; this device does not have it"
        return Finding(Verb.NONE, reason, text)
    withdrawn |= {entry.sha256 for entry in older if takes_back(world, entry)}
    release = _way_back(world, have, older, withdrawn)
    if (
        release is None
        and have.active_sha256 == directive.sha256
        and not _has_previous(world, have, withdrawn)
    ):
        text = f"{directive.bundle} is to be left, but there is no other bundle to go to; it stays"
        return Finding(Verb.KEEP, Reason.NOTHING_TO_REVERT_TO, text, settled=True)
    goal = "the previous bundle" if release is None else release.path
    if stopped:
        text = f"{directive.bundle} was stopped for {stratum_of(world.facts)}; go to {goal}"
        reason = Reason.STRATUM_STOPPED
    else:
        text = f"the fleet manager rolled back {directive.bundle}; go to {goal}"
        reason = Reason.FLEET_ROLLBACK
    return Finding(Verb.REVERT, reason, text, settled=True, release=release)


def is_blocked(world: World, manifest_sha256: str | None) -> bool:
    """Whether the bundle is on the fleet's block list."""
    return manifest_sha256 in world.emergency.blocked


def leave_blocked(
    world: World, have: CurrentModel, newest_first: Sequence[Directive]
) -> Decision | None:
    """What to do about a blocked bundle that is under way or active; None when there is none."""
    if is_blocked(world, have.pending_sha256):
        assert have.pending_sha256 is not None
        text = f"{_named(world, have.pending_sha256, newest_first)}; it is called off"
        return _leave(have, have.pending_sha256, text, newest_first)
    if not is_blocked(world, have.active_sha256):
        return None
    active = have.active_sha256
    assert active is not None
    what = _named(world, active, newest_first)
    withdrawn = frozenset(entry.sha256 for entry in newest_first if takes_back(world, entry))
    if _has_previous(world, have, withdrawn):
        return _leave(have, active, f"{what}; go to the previous bundle", newest_first)
    release = _way_back(world, have, newest_first, withdrawn)
    if release is not None:
        brings = next(entry for entry in newest_first if entry.bundle == release.path)
        text = f"{what}; go to {release.path}"
        return Decision(
            have.model, Verb.REVERT, Reason.BLOCKED, text, release, brings, leaves=active
        )
    text = f"{what}, but there is no other bundle to go to; it stays"
    return Decision(
        have.model, Verb.KEEP, Reason.BLOCKED, text, directive=_naming(active, newest_first)
    )


def _leave(
    have: CurrentModel, manifest_sha256: str, text: str, newest_first: Sequence[Directive]
) -> Decision:
    directive = _naming(manifest_sha256, newest_first)
    return Decision(
        have.model,
        Verb.REVERT,
        Reason.BLOCKED,
        text,
        directive=directive,
        leaves=manifest_sha256,
    )


def _naming(manifest_sha256: str, newest_first: Sequence[Directive]) -> Directive | None:
    return next((entry for entry in newest_first if entry.sha256 == manifest_sha256), None)


def _named(world: World, manifest_sha256: str, newest_first: Sequence[Directive]) -> str:
    directive = _naming(manifest_sha256, newest_first)
    name = directive.bundle if directive is not None else f"the bundle {manifest_sha256[:12]}…"
    why = world.emergency.blocked[manifest_sha256] or "no reason given"
    return f"{name} is on the fleet's block list: {why}"


def _has_previous(world: World, have: CurrentModel, withdrawn: frozenset[str]) -> bool:
    previous = have.previous_sha256
    return previous is not None and previous not in withdrawn and not is_blocked(world, previous)


def _way_back(
    world: World, have: CurrentModel, older: Sequence[Directive], withdrawn: frozenset[str]
) -> BundleRelease | None:
    """The newest release that the device may go back to."""
    return next(
        (
            world.releases[entry.bundle]
            for entry in older
            if _may_go_back_to(world, have, entry, withdrawn)
        ),
        None,
    )


def _may_go_back_to(
    world: World, have: CurrentModel, directive: Directive, withdrawn: frozenset[str]
) -> bool:
    if directive.kind != "deploy" or directive.halt or directive.sha256 in withdrawn:
        return False
    if not_meant(world, directive) or left_out(world, directive):
        return False
    if is_blocked(world, directive.sha256):
        return False
    found = obstacle(world, directive)
    if directive.sha256 in (have.active_sha256, have.previous_sha256):
        # Already here: share and floor have been passed.
        return found is None or found.reason is Reason.BELOW_FLOOR
    if too_early(world, directive) or not world.answers(directive):
        return False
    return found is None
