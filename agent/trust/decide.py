"""What a device does about the directives it has verified. Pure: values in, values out.

Rules kept here:

* For each model the directives are read newest first, and the first that settles the matter
  decides; one that is not meant for this device is passed over, so the previous stable bundle is
  still wanted where the canary is not.
* A bundle is installed only where the online directive and the offline release name the same path,
  length and digest, and only as fast as the slower of the two allows.
* A share that shrinks takes nothing away: only a rollback makes a device leave a bundle. A bundle
  that was rolled back is not installed by any older directive, so a device cannot swing to and fro.
* Halting ends what has not been swapped in yet, and nothing else.
* A refusal does not keep a device from an older directive that it should have followed already; it
  is told once there is nothing left to install.
* Going back to the device's own previous slot needs no release above the floor; going anywhere else
  does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.trust.cohort import slot_of
from agent.trust.decision import CurrentModel, Decision, DeviceFacts, Reason, Verb
from agent.trust.directive import Directive
from agent.trust.release import BundleRelease
from agent.trust.turns import selects
from agent.trust.versions import version_fits

__all__ = ["decide"]


def decide(
    directives: Sequence[Directive],
    releases: Mapping[str, BundleRelease],
    facts: DeviceFacts,
    current: Mapping[str, CurrentModel],
    floor: Mapping[str, int],
    now_s: float,
) -> tuple[Decision, ...]:
    """Decide about every model that a directive names or that a deployment is under way for.

    Args:
        directives: the verified directives, in any order.
        releases: the verified releases by path.
        facts: the device.
        current: where the device stands, by model; a model that is missing has nothing.
        floor: lowest acceptable release by model, ``TrustState.floors_for(facts.device_class)``.
        now_s: trusted time, ``TrustState.trusted_now_s(clock)``.

    Returns:
        One decision a model, ordered by model name.
    """
    world = _World(releases, facts, floor, now_s)
    under_way = {model for model, have in current.items() if have.pending_sha256 is not None}
    models = {directive.model for directive in directives} | under_way
    newest_first = sorted(directives, key=lambda directive: (-directive.number, directive.id))
    return tuple(
        _decide_model(
            world,
            current.get(model, CurrentModel(model)),
            [directive for directive in newest_first if directive.model == model],
        )
        for model in sorted(models)
    )


@dataclass(frozen=True, slots=True)
class _World:
    """What every judgement about this device needs."""

    releases: Mapping[str, BundleRelease]
    facts: DeviceFacts
    floor: Mapping[str, int]
    now_s: float


@dataclass(frozen=True, slots=True)
class _Finding:
    """What one directive says to this device. ``settled`` ends the reading."""

    verb: Verb
    reason: Reason
    text: str
    settled: bool = False
    release: BundleRelease | None = None


def _decide_model(world: _World, have: CurrentModel, newest_first: Sequence[Directive]) -> Decision:
    withdrawn: set[str] = set()
    unsettled: list[tuple[_Finding, Directive]] = []
    for place, directive in enumerate(newest_first):
        if directive.kind == "rollback" and _is_meant(world, directive) is None:
            withdrawn.add(directive.sha256)
            finding = _judge_rollback(world, have, newest_first[place:], frozenset(withdrawn))
        else:
            finding = _judge_deploy(world, have, directive, frozenset(withdrawn))
        if finding.settled and not (finding.verb is Verb.KEEP and _refusal(unsettled)):
            return _decision(have.model, finding, directive)
        unsettled.append((finding, directive))
        if finding.settled:
            break
    chosen = _refusal(unsettled) or next(iter(unsettled), None)
    if chosen is None:
        text = f"no directive names {have.model} any more"
        return Decision(have.model, Verb.NONE, Reason.NO_DIRECTIVE, text)
    return _decision(have.model, *chosen)


def _refusal(
    unsettled: Sequence[tuple[_Finding, Directive]],
) -> tuple[_Finding, Directive] | None:
    """The newest refusal among what has been read."""
    return next((entry for entry in unsettled if entry[0].verb is Verb.REFUSE), None)


def _decision(model: str, finding: _Finding, directive: Directive) -> Decision:
    text = f"{directive.id}: {finding.text}"
    return Decision(model, finding.verb, finding.reason, text, finding.release, directive)


def _is_meant(world: _World, directive: Directive) -> _Finding | None:
    """None when the directive is meant for this device, else why it is not."""
    facts = world.facts
    if directive.device_class != facts.device_class:
        text = (
            f"the bundle is for class {directive.device_class}, this device is {facts.device_class}"
        )
        return _Finding(Verb.NONE, Reason.OTHER_CLASS, text)
    if not selects(directive.selector, facts):
        wanted = ", ".join(f"{label}={value}" for label, value in directive.selector)
        return _Finding(
            Verb.NONE, Reason.NOT_SELECTED, f"this device does not have the labels {wanted}"
        )
    return None


def _judge_deploy(
    world: _World, have: CurrentModel, directive: Directive, withdrawn: frozenset[str]
) -> _Finding:
    """What a directive to deploy (or a rollback that is not meant for this device) says."""
    other = _is_meant(world, directive)
    if other is not None:
        return other
    if directive.sha256 in withdrawn:
        return _Finding(
            Verb.NONE, Reason.WITHDRAWN, f"{directive.bundle} was rolled back by a newer directive"
        )
    if have.active_sha256 == directive.sha256:
        return _Finding(
            Verb.KEEP, Reason.ALREADY_ACTIVE, f"{directive.bundle} is active", settled=True
        )
    if directive.halt:
        under_way = have.pending_sha256 == directive.sha256
        text = f"the rollout of {directive.bundle} is halted"
        return _Finding(Verb.NONE, Reason.HALTED, text, settled=under_way)
    if (directive.id, directive.sha256) in have.refused:
        text = f"this device has tried {directive.bundle} in this rollout and refused it"
        return _Finding(Verb.NONE, Reason.REFUSED_BEFORE, text)
    waits = _waits(world, directive)
    if waits is not None:
        return waits
    obstacle = _obstacle(world, directive)
    if obstacle is not None:
        return obstacle
    release = world.releases[directive.bundle]
    text = f"go to {directive.bundle}"
    return _Finding(Verb.INSTALL, Reason.IN_COHORT, text, settled=True, release=release)


def _judge_rollback(
    world: _World, have: CurrentModel, from_here: Sequence[Directive], withdrawn: frozenset[str]
) -> _Finding:
    """What a rollback says: leave its bundle for an older directive's or the previous slot."""
    directive, older = from_here[0], from_here[1:]
    if directive.sha256 not in (have.active_sha256, have.pending_sha256):
        text = f"{directive.bundle} was rolled back; this device does not have it"
        return _Finding(Verb.NONE, Reason.WITHDRAWN, text)
    withdrawn |= {
        entry.sha256
        for entry in older
        if entry.kind == "rollback" and _is_meant(world, entry) is None
    }
    release = next(
        (
            world.releases[entry.bundle]
            for entry in older
            if _may_go_back_to(world, have, entry, withdrawn)
        ),
        None,
    )
    has_previous = have.previous_sha256 is not None and have.previous_sha256 not in withdrawn
    if release is None and have.active_sha256 == directive.sha256 and not has_previous:
        text = f"{directive.bundle} is to be left, but there is no other bundle to go to; it stays"
        return _Finding(Verb.KEEP, Reason.NOTHING_TO_REVERT_TO, text, settled=True)
    goal = "the previous bundle" if release is None else release.path
    text = f"the fleet manager rolled back {directive.bundle}; go to {goal}"
    return _Finding(Verb.REVERT, Reason.FLEET_ROLLBACK, text, settled=True, release=release)


def _may_go_back_to(
    world: _World, have: CurrentModel, directive: Directive, withdrawn: frozenset[str]
) -> bool:
    if directive.kind != "deploy" or directive.halt or directive.sha256 in withdrawn:
        return False
    if _is_meant(world, directive) is not None:
        return False
    if directive.sha256 in (have.active_sha256, have.previous_sha256):
        obstacle = _obstacle(world, directive)  # already here: share and floor have been passed
        return obstacle is None or obstacle.reason is Reason.BELOW_FLOOR
    return _waits(world, directive) is None and _obstacle(world, directive) is None


def _waits(world: _World, directive: Directive) -> _Finding | None:
    """Why it is not this device's turn yet; None when it is."""
    if world.now_s < directive.not_before_s:
        text = f"installing {directive.bundle} begins at {directive.not_before_s} s since the epoch"
        return _Finding(Verb.NONE, Reason.TOO_EARLY, text)
    slot = slot_of(directive.sha256, world.facts.device_id)
    if slot >= directive.percent_bp:
        text = f"place {slot} is not among the first {directive.percent_bp} of 10000"
        return _Finding(Verb.NONE, Reason.NOT_IN_COHORT, text)
    release = world.releases.get(directive.bundle)
    limit_bp = directive.percent_bp if release is None else release.limit_bp(world.now_s)
    if slot >= limit_bp:
        text = (
            f"place {slot} is not among the first {limit_bp} of 10000 that the release allows by "
            "now"
        )
        return _Finding(Verb.NONE, Reason.SPEED_LIMIT, text)
    return None


def _obstacle(world: _World, directive: Directive) -> _Finding | None:
    """Why this device cannot obey a directive that is meant for it; None when it can."""
    release = world.releases.get(directive.bundle)
    if release is None:
        return _refuse(Reason.NOT_RELEASED, f"no release is signed for {directive.bundle}")
    named = (directive.bundle, directive.length, directive.sha256, directive.model)
    signed = (release.path, release.length, release.sha256, release.model)
    if named != signed:
        return _refuse(
            Reason.BOTH_DISAGREE,
            f"the directive names {directive.bundle} of {directive.length} bytes with digest "
            f"{directive.sha256}, the release is of {release.length} bytes with digest "
            f"{release.sha256}",
        )
    return _unfit(world, release)


def _unfit(world: _World, release: BundleRelease) -> _Finding | None:
    """Why this device cannot run what is released; None when it can."""
    facts = world.facts
    if release.hardware and facts.hardware not in release.hardware:
        text = (
            f"{release.path} runs on {', '.join(release.hardware)}; this device is {facts.hardware}"
        )
        return _refuse(Reason.WRONG_HARDWARE, text)
    if not version_fits(facts.agent_version, release.agent):
        text = f"{release.path} needs an agent {release.agent}; this one is {facts.agent_version}"
        return _refuse(Reason.AGENT_VERSION, text)
    if not version_fits(facts.onnxruntime_version, release.onnxruntime):
        text = (
            f"{release.path} needs onnxruntime {release.onnxruntime}; "
            f"this device has {facts.onnxruntime_version}"
        )
        return _refuse(Reason.ONNXRUNTIME_VERSION, text)
    lowest = world.floor.get(release.model, 0)
    if release.release < lowest:
        text = (
            f"{release.path} is release {release.release}; {release.model} may not go below "
            f"{lowest}"
        )
        return _refuse(Reason.BELOW_FLOOR, text)
    return None


def _refuse(reason: Reason, text: str) -> _Finding:
    return _Finding(Verb.REFUSE, reason, text)
