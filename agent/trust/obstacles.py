"""Why a device cannot obey a directive that is meant for it, in the order of the rules.

Both roles agree, hardware, agent and onnxruntime versions, block list, release floor, and going back to an older
release. Class, labels, turn, speed limit and halt come before all of these (:mod:`agent.trust.decide`), so that only
those devices report a refusal whose turn it is; all must hold before anything is installed, so the order changes what
is told and never what is done.
"""

from agent.trust.decision import CurrentModel, Reason
from agent.trust.directive import Directive
from agent.trust.release import BundleRelease
from agent.trust.versions import version_fits
from agent.trust.world import Finding, World, refuse

__all__ = ["goes_back", "obstacle"]


def obstacle(world: World, directive: Directive) -> Finding | None:
    """Why this device cannot have the directive's bundle; None when it can."""
    release = world.releases.get(directive.bundle)
    if release is None:
        return refuse(Reason.NOT_RELEASED, f"no release is signed for {directive.bundle}")
    named = (directive.bundle, directive.length, directive.sha256, directive.model)
    signed = (release.path, release.length, release.sha256, release.model)
    if named != signed:
        return refuse(
            Reason.BOTH_DISAGREE,
            f"the directive names {directive.bundle} of {directive.length} bytes with digest "
            f"{directive.sha256}, the release is of {release.length} bytes with digest "
            f"{release.sha256}",
        )
    return _unfit(world, release) or _forbidden(world, release)


def _unfit(world: World, release: BundleRelease) -> Finding | None:
    """Why this device cannot run what is released."""
    facts = world.facts
    if release.hardware and facts.hardware not in release.hardware:
        text = (
            f"{release.path} runs on {', '.join(release.hardware)}; this device is {facts.hardware}"
        )
        return refuse(Reason.WRONG_HARDWARE, text)
    if not version_fits(facts.agent_version, release.agent):
        text = f"{release.path} needs an agent {release.agent}; this one is {facts.agent_version}"
        return refuse(Reason.AGENT_VERSION, text)
    if not version_fits(facts.onnxruntime_version, release.onnxruntime):
        text = (
            f"{release.path} needs onnxruntime {release.onnxruntime}; "
            f"this device has {facts.onnxruntime_version}"
        )
        return refuse(Reason.ONNXRUNTIME_VERSION, text)
    return None


def _forbidden(world: World, release: BundleRelease) -> Finding | None:
    """Why nobody, or no device that has seen what this one has, may install what is released."""
    why = world.emergency.blocked.get(release.sha256)
    if why is not None:
        text = f"{release.path} is on the fleet's block list: {why or 'no reason given'}"
        return refuse(Reason.BLOCKED, text)
    lowest = world.floor.get(release.model, 0)
    if release.release < lowest:
        text = (
            f"{release.path} is release {release.release}; {release.model} may not go below "
            f"{lowest}"
        )
        return refuse(Reason.BELOW_FLOOR, text)
    return None


def goes_back(world: World, have: CurrentModel, directive: Directive) -> Finding | None:
    """Why the bundle may not replace the active one: it is an older release, and nobody said that this is meant.

    A release that the offline role does not list any more has no number, so nothing is older than it.
    """
    release, active = world.releases[directive.bundle], world.released(have.active_sha256)
    if active is None or release.release >= active.release or directive.older:
        return None
    text = (
        f"{release.path} is release {release.release}, older than release {active.release} that is "
        f"active ({active.path}); roll that rollout back, or start this one with --older"
    )
    return refuse(Reason.OLDER_RELEASE, text)
