"""What the rollout role is to say, as a pure function of all rollouts.

Rules kept here: the directives are derived, never edited, so that a crash cannot leave one behind;
what waits for its first approval says nothing; what is under way speaks as its stage does; what was
promoted speaks to everyone, the hold-back too; what was paused, aborted or superseded halts; what was
rolled back says so, at once and outside of maintenance windows too, until a newer promoted rollout
reaches every device it could concern. A stratum that was stopped, or a device that is left out,
still follows the rollout before.
"""

from collections.abc import Mapping, Sequence

from agent.trust import Directive
from fleet.errors import ServerError
from fleet.rollout.record import Rollout
from fleet.rollout.spec import ALL_BP, RolloutSpec, bundle_class, selectors_overlap
from fleet.rollout.states import HALTED, State
from fleet.rollout.strategies import Wanted, wanted

__all__ = ["desired_directives", "is_superseded", "may_share_devices", "stable_before"]


def desired_directives(
    rollouts: Sequence[Rollout], manifest_bytes: Mapping[str, int]
) -> tuple[Directive, ...]:
    """One directive for each rollout that still has something to say, oldest first.

    Args:
        rollouts: every rollout there has been.
        manifest_bytes: length of the manifest, by bundle path.

    Raises:
        ServerError: a rollout names a bundle that is not published.
    """
    speaking = [
        rollout
        for rollout in rollouts
        if rollout.state is not State.WAITING and not is_superseded(rollout, rollouts)
    ]
    speaking.sort(key=lambda rollout: rollout.number)
    return tuple(_directive(rollout, manifest_bytes) for rollout in speaking)


def is_superseded(rollout: Rollout, rollouts: Sequence[Rollout]) -> bool:
    """Whether a newer rollout, promoted to all the devices this one is for, has replaced it."""
    return any(
        newer.number > rollout.number
        and newer.state is State.PROMOTED
        and _reaches(newer, rollout.spec)
        for newer in rollouts
    )


def stable_before(rollout: Rollout, rollouts: Sequence[Rollout]) -> Rollout | None:
    """The newest promoted rollout that every device of ``rollout`` follows otherwise."""
    older = [
        other
        for other in rollouts
        if other.number < rollout.number
        and other.state is State.PROMOTED
        and _reaches(other, rollout.spec)
    ]
    return max(older, key=lambda other: other.number, default=None)


def may_share_devices(one: RolloutSpec, other: RolloutSpec) -> bool:
    """Whether a device could be meant by both, known or not."""
    return (
        one.model == other.model
        and bundle_class(one.bundle) == bundle_class(other.bundle)
        and selectors_overlap(one.selector, other.selector)
        and not set(one.exclude) & set(other.selector)
        and not set(other.exclude) & set(one.selector)
    )


def _reaches(rollout: Rollout, other: RolloutSpec) -> bool:
    """Whether every device that ``other`` is for follows ``rollout``."""
    spec, wanted_labels = rollout.spec, dict(other.selector)
    return (
        spec.model == other.model
        and bundle_class(spec.bundle) == bundle_class(other.bundle)
        and set(spec.selector) <= set(other.selector)
        and not rollout.stopped
        and all(
            (label, value) in other.exclude or wanted_labels.get(label, value) != value
            for label, value in spec.exclude
        )
    )


def _directive(rollout: Rollout, manifest_bytes: Mapping[str, int]) -> Directive:
    length = manifest_bytes.get(rollout.bundle)
    if length is None:
        raise ServerError(
            f"rollout {rollout.id} is about {rollout.bundle}, which the database does not list as "
            "published: publish it again"
        )
    spec, is_rollback = rollout.spec, rollout.state is State.ROLLED_BACK
    says = _says(rollout)
    return Directive(
        id=rollout.id,
        number=rollout.number,
        model=rollout.model,
        bundle=rollout.bundle,
        sha256=rollout.manifest_sha256,
        length=length,
        selector=spec.selector,
        stage=rollout.stage,
        halt=rollout.state in HALTED,
        kind="rollback" if is_rollback else "deploy",
        not_before_s=0,
        created_s=int(rollout.created_s),
        stage_started_s=int(rollout.stage_started_s) if says.ramp_s else 0,
        open_hours=() if is_rollback else spec.open_hours,
        exclude=spec.exclude,
        stopped=() if is_rollback else rollout.stopped,
        retries=0 if is_rollback else spec.retries,
        older=not is_rollback and spec.older,
        **says.to_json(),
    )


def _says(rollout: Rollout) -> Wanted:
    """How the bundle is to be held, and by what share."""
    if rollout.state is State.PROMOTED:
        return Wanted(percent_bp=ALL_BP)
    asked = wanted(rollout.spec, rollout.stage)
    if rollout.state is State.ROLLED_BACK:
        return Wanted(mode=asked.mode)
    return asked
