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
* Going to an older release than the active one needs a rollback, or a directive that says it is meant.
* A blocked bundle is never installed, and left where it is active (:mod:`agent.trust.leaving`).
* By metadata that has expired nothing is begun, tried or swapped in; leaving a bundle needs no fresh metadata.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from agent.trust.decision import CurrentModel, Decision, DeviceFacts, Reason, Tries, Verb
from agent.trust.directive import Directive
from agent.trust.leaving import is_blocked, judge_rollback, leave_blocked
from agent.trust.meant import left_out, not_meant, takes_back, too_early
from agent.trust.obstacles import goes_back, obstacle
from agent.trust.release import BundleRelease
from agent.trust.turns import may_try, next_try_s, share_now_bp
from agent.trust.world import Finding, World

__all__ = ["decide", "decide_in"]


def decide(
    directives: Sequence[Directive],
    releases: Mapping[str, BundleRelease],
    facts: DeviceFacts,
    current: Mapping[str, CurrentModel],
    floor: Mapping[str, int],
    now_s: float,
) -> tuple[Decision, ...]:
    """:func:`decide_in` a world without emergencies, by metadata that does not expire.

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
    return decide_in(World(releases, facts, floor, now_s), directives, current)


def decide_in(
    world: World, directives: Sequence[Directive], current: Mapping[str, CurrentModel]
) -> tuple[Decision, ...]:
    """Decide about every model that a directive names, that a deployment is under way for, or of which a bundle here
    is blocked.

    Args:
        world: what is verified and known.
        directives: the verified directives, in any order.
        current: where the device stands, by model; a model that is missing has nothing.

    Returns:
        One decision a model, ordered by model name.
    """
    concerned = {model for model, have in current.items() if _is_concerned(world, have)}
    models = {directive.model for directive in directives} | concerned
    newest_first = sorted(directives, key=lambda directive: (-directive.number, directive.id))
    return tuple(
        _decide_model(
            world,
            current.get(model, CurrentModel(model)),
            [directive for directive in newest_first if directive.model == model],
        )
        for model in sorted(models)
    )


def _is_concerned(world: World, have: CurrentModel) -> bool:
    """Whether there is something to decide about a model that no directive names."""
    held = (have.active_sha256, have.previous_sha256)
    return have.pending_sha256 is not None or any(is_blocked(world, digest) for digest in held)


def _decide_model(world: World, have: CurrentModel, newest_first: Sequence[Directive]) -> Decision:
    decision = leave_blocked(world, have, newest_first) or _follow(world, have, newest_first)
    return replace(decision, forgets_previous=is_blocked(world, have.previous_sha256))


def _follow(world: World, have: CurrentModel, newest_first: Sequence[Directive]) -> Decision:
    withdrawn: set[str] = set()
    unsettled: list[tuple[Finding, Directive]] = []
    beside: tuple[Finding, Directive] | None = None
    for place, directive in enumerate(newest_first):
        if takes_back(world, directive):
            withdrawn.add(directive.sha256)
            finding = judge_rollback(world, have, newest_first[place:], frozenset(withdrawn))
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


def _refusal(
    unsettled: Sequence[tuple[Finding, Directive]],
) -> tuple[Finding, Directive] | None:
    """The newest refusal among what has been read."""
    return next((entry for entry in unsettled if entry[0].verb is Verb.REFUSE), None)


def _decision(model: str, finding: Finding, directive: Directive) -> Decision:
    text = f"{directive.id}: {finding.text}"
    return Decision(model, finding.verb, finding.reason, text, finding.release, directive)


def _judge_deploy(
    world: World, have: CurrentModel, directive: Directive, withdrawn: frozenset[str]
) -> Finding:
    """What a directive to deploy (or a rollback that is not meant for this device) says."""
    other = not_meant(world, directive) or left_out(world, directive)
    if other is not None:
        return other
    if directive.sha256 in withdrawn:
        return Finding(
            Verb.NONE, Reason.WITHDRAWN, f"{directive.bundle} was rolled back by a newer directive"
        )
    if have.active_sha256 == directive.sha256:
        return Finding(
            Verb.KEEP, Reason.ALREADY_ACTIVE, f"{directive.bundle} is active", settled=True
        )
    if directive.halt:
        under_way = have.pending_sha256 == directive.sha256
        text = f"the rollout of {directive.bundle} is halted"
        return Finding(Verb.NONE, Reason.HALTED, text, settled=under_way)
    waits = _tried(world, have, directive) or _waits(world, have, directive)
    if waits is not None:
        return waits
    found = obstacle(world, directive) or goes_back(world, have, directive)
    return found or _stale(world, have, directive) or _go(world, directive)


def _stale(world: World, have: CurrentModel, directive: Directive) -> Finding | None:
    """None unless the metadata has expired and nothing is under way by this directive."""
    if world.is_fresh or have.pending_sha256 == directive.sha256:
        return None
    text = f"the signed metadata has expired, so {directive.bundle} is not begun by it"
    return Finding(Verb.NONE, Reason.STALE_METADATA, text)


def _go(world: World, directive: Directive) -> Finding:
    """Take the bundle, to answer with it or to hold it beside."""
    release = world.releases[directive.bundle]
    held, until = _held(world, directive)
    if world.answers(directive):
        text = f"go to {directive.bundle}{until}"
        return Finding(Verb.INSTALL, held or Reason.IN_COHORT, text, settled=True, release=release)
    text = f"hold {directive.bundle} beside the active bundle ({directive.mode}){until}"
    return Finding(Verb.BESIDE, held or Reason.BESIDE, text, release=release)


def _held(world: World, directive: Directive) -> tuple[Reason | None, str]:
    """Why nothing is to be tried or swapped in now, though it may go on, and until when in words."""
    if not world.is_fresh:
        return Reason.STALE_METADATA, ", but not before the signed metadata is fresh again"
    if not world.is_open(directive):
        hours = f", but not before its open hours ({', '.join(directive.open_hours)})"
        return Reason.CLOSED, hours
    return None, ""


def _tried(world: World, have: CurrentModel, directive: Directive) -> Finding | None:
    """None unless this device has refused or reverted the bundle and may not try it (again) now."""
    tries: Tries | None = have.refused.get((directive.id, directive.sha256))
    if tries is None or may_try(directive, tries, world.now_s):
        return None
    text = f"this device has tried {directive.bundle} in this rollout and refused it"
    at_s = next_try_s(directive, tries)
    if at_s is not None:
        left_s = max(at_s - world.now_s, 0.0)
        text = f"{text} ({tries.count} of {directive.retries + 1} tries); again in {left_s:.0f} s"
    return Finding(Verb.NONE, Reason.REFUSED_BEFORE, text)


def _waits(world: World, have: CurrentModel, directive: Directive) -> Finding | None:
    """Why it is not this device's turn yet; None when it is."""
    early = too_early(world, directive)
    if early is not None:
        return early
    slot, answers_bp = world.slot(directive), share_now_bp(directive, world.now_s)
    beside_bp = 0 if directive.mode == "canary" else directive.beside_bp
    share_bp, limit_bp = max(answers_bp, beside_bp), world.limit_bp(directive)
    if slot >= share_bp:
        text = f"place {slot} is not among the first {share_bp} of 10000"
        return Finding(Verb.NONE, Reason.NOT_IN_COHORT, text)
    if slot >= limit_bp:
        text = (
            f"place {slot} is not among the first {limit_bp} of 10000 that the release allows by "
            "now"
        )
        return Finding(Verb.NONE, Reason.SPEED_LIMIT, text)
    if slot >= answers_bp and have.active_sha256 is None:
        text = f"nothing answers yet that {directive.bundle} could be held beside"
        return Finding(Verb.NONE, Reason.NOTHING_ACTIVE, text)
    if not world.is_open(directive) and have.pending_sha256 != directive.sha256:
        text = f"outside of the open hours of {directive.id} ({', '.join(directive.open_hours)})"
        return Finding(Verb.NONE, Reason.CLOSED, text)
    return None
