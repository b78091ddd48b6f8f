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
* What is held beside waits for what answers: first a device follows the older directives, then it holds the
  newer bundle beside. Who is in the share that answers answers, whatever it holds beside.
* Outside of the open hours nothing is begun or swapped; what is under way goes on up to its trial.
* A stratum that was stopped does as under a rollback, while the others go on.
* A refusal does not keep a device from an older directive that it should have followed already; it
  is told once there is nothing left to install.
* Going back to the device's own previous slot needs no release above the floor; going anywhere else
  does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.trust.cohort import SLOTS, slot_of
from agent.trust.decision import CurrentModel, Decision, DeviceFacts, Reason, Tries, Verb
from agent.trust.directive import Directive
from agent.trust.release import BundleRelease
from agent.trust.turns import (
    excluded,
    is_open,
    is_stopped,
    may_try,
    next_try_s,
    selects,
    share_now_bp,
    stratum_of,
)
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
    beside: tuple[_Finding, Directive] | None = None
    for place, directive in enumerate(newest_first):
        if _takes_back(world, directive):
            withdrawn.add(directive.sha256)
            finding = _judge_rollback(world, have, newest_first[place:], frozenset(withdrawn))
        else:
            finding = _judge_deploy(world, have, directive, frozenset(withdrawn))
        keeps = finding.verb is Verb.KEEP and (beside or _refusal(unsettled))
        if finding.settled and not keeps:
            return _decision(have.model, finding, directive)
        if finding.verb is Verb.BESIDE:
            beside = beside or (finding, directive)
            continue
        unsettled.append((finding, directive))
        if finding.settled:
            break
    chosen = beside or _refusal(unsettled) or next(iter(unsettled), None)
    if chosen is None:
        text = f"no directive names {have.model} any more"
        return Decision(have.model, Verb.NONE, Reason.NO_DIRECTIVE, text)
    return _decision(have.model, *chosen)


def _takes_back(world: _World, directive: Directive) -> bool:
    """Whether a directive makes this device leave its bundle: for the whole fleet or for its stratum."""
    if directive.kind != "rollback" and not is_stopped(directive, world.facts):
        return False
    return _is_meant(world, directive) is None


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
    other = _is_meant(world, directive) or _left_out(world, directive)
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
    waits = _tried(world, have, directive) or _waits(world, have, directive)
    if waits is not None:
        return waits
    obstacle = _obstacle(world, directive)
    if obstacle is not None:
        return obstacle
    return _go(world, directive)


def _go(world: _World, directive: Directive) -> _Finding:
    """Take the bundle, to answer with it or to hold it beside."""
    release = world.releases[directive.bundle]
    closed = not _is_open(world, directive)
    hours = f", but not before its open hours ({', '.join(directive.open_hours)})" if closed else ""
    if _answers(world, directive):
        text = f"go to {directive.bundle}{hours}"
        reason = Reason.CLOSED if closed else Reason.IN_COHORT
        return _Finding(Verb.INSTALL, reason, text, settled=True, release=release)
    text = f"hold {directive.bundle} beside the active bundle ({directive.mode}){hours}"
    reason = Reason.CLOSED if closed else Reason.BESIDE
    return _Finding(Verb.BESIDE, reason, text, release=release)


def _left_out(world: _World, directive: Directive) -> _Finding | None:
    """None unless a label of this device leaves it out."""
    pair = excluded(directive.exclude, world.facts)
    if pair is None:
        return None
    text = f"devices with the label {pair[0]}={pair[1]} are left out of {directive.id}"
    return _Finding(Verb.NONE, Reason.EXCLUDED, text)


def _tried(world: _World, have: CurrentModel, directive: Directive) -> _Finding | None:
    """None unless this device has refused or reverted the bundle and may not try it (again) now."""
    tries: Tries | None = have.refused.get((directive.id, directive.sha256))
    if tries is None or may_try(directive, tries, world.now_s):
        return None
    text = f"this device has tried {directive.bundle} in this rollout and refused it"
    at_s = next_try_s(directive, tries)
    if at_s is not None:
        left_s = max(at_s - world.now_s, 0.0)
        text = f"{text} ({tries.count} of {directive.retries + 1} tries); again in {left_s:.0f} s"
    return _Finding(Verb.NONE, Reason.REFUSED_BEFORE, text)


def _judge_rollback(
    world: _World, have: CurrentModel, from_here: Sequence[Directive], withdrawn: frozenset[str]
) -> _Finding:
    """What a rollback says: leave its bundle for an older directive's or the previous slot."""
    directive, older = from_here[0], from_here[1:]
    stopped = directive.kind != "rollback"
    if directive.sha256 not in (have.active_sha256, have.pending_sha256):
        reason = Reason.STRATUM_STOPPED if stopped else Reason.WITHDRAWN
        what = f"stopped for {stratum_of(world.facts)}" if stopped else "rolled back"
        text = f"{directive.bundle} was {what}; this device does not have it"
        return _Finding(Verb.NONE, reason, text)
    withdrawn |= {entry.sha256 for entry in older if _takes_back(world, entry)}
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
    if stopped:
        text = f"{directive.bundle} was stopped for {stratum_of(world.facts)}; go to {goal}"
        reason = Reason.STRATUM_STOPPED
    else:
        text = f"the fleet manager rolled back {directive.bundle}; go to {goal}"
        reason = Reason.FLEET_ROLLBACK
    return _Finding(Verb.REVERT, reason, text, settled=True, release=release)


def _may_go_back_to(
    world: _World, have: CurrentModel, directive: Directive, withdrawn: frozenset[str]
) -> bool:
    if directive.kind != "deploy" or directive.halt or directive.sha256 in withdrawn:
        return False
    if _is_meant(world, directive) or _left_out(world, directive):
        return False
    if directive.sha256 in (have.active_sha256, have.previous_sha256):
        obstacle = _obstacle(world, directive)  # already here: share and floor have been passed
        return obstacle is None or obstacle.reason is Reason.BELOW_FLOOR
    if _too_early(world, directive) or not _answers(world, directive):
        return False
    return _obstacle(world, directive) is None


def _too_early(world: _World, directive: Directive) -> _Finding | None:
    if world.now_s >= directive.not_before_s:
        return None
    text = f"installing {directive.bundle} begins at {directive.not_before_s} s since the epoch"
    return _Finding(Verb.NONE, Reason.TOO_EARLY, text)


def _slot(world: _World, directive: Directive) -> int:
    return slot_of(directive.sha256, world.facts.device_id)


def _limit_bp(world: _World, directive: Directive) -> int:
    """The share that the release allows by now; all of the fleet while it is not known."""
    release = world.releases.get(directive.bundle)
    return SLOTS if release is None else release.limit_bp(world.now_s)


def _answers(world: _World, directive: Directive) -> bool:
    """Whether this device is in the share that answers with the bundle, as the release allows by now."""
    share_bp = min(share_now_bp(directive, world.now_s), _limit_bp(world, directive))
    return _slot(world, directive) < share_bp


def _is_open(world: _World, directive: Directive) -> bool:
    return is_open(directive.open_hours, world.now_s, world.facts.utc_offset_minutes)


def _waits(world: _World, have: CurrentModel, directive: Directive) -> _Finding | None:
    """Why it is not this device's turn yet; None when it is."""
    early = _too_early(world, directive)
    if early is not None:
        return early
    slot, answers_bp = _slot(world, directive), share_now_bp(directive, world.now_s)
    beside_bp = 0 if directive.mode == "canary" else directive.beside_bp
    share_bp, limit_bp = max(answers_bp, beside_bp), _limit_bp(world, directive)
    if slot >= share_bp:
        text = f"place {slot} is not among the first {share_bp} of 10000"
        return _Finding(Verb.NONE, Reason.NOT_IN_COHORT, text)
    if slot >= limit_bp:
        text = (
            f"place {slot} is not among the first {limit_bp} of 10000 that the release allows by "
            "now"
        )
        return _Finding(Verb.NONE, Reason.SPEED_LIMIT, text)
    if slot >= answers_bp and have.active_sha256 is None:
        text = f"nothing answers yet that {directive.bundle} could be held beside"
        return _Finding(Verb.NONE, Reason.NOTHING_ACTIVE, text)
    if not _is_open(world, directive) and have.pending_sha256 != directive.sha256:
        text = f"outside of the open hours of {directive.id} ({', '.join(directive.open_hours)})"
        return _Finding(Verb.NONE, Reason.CLOSED, text)
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
