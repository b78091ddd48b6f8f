"""What the rollout role is to say, as a pure function of all rollouts.

Rules kept here: the directives are derived, never edited, so that a crash cannot leave one behind;
what is under way speaks at its stage's share; what was promoted speaks to everyone; what was paused
or aborted halts; what was rolled back says so until a newer promoted rollout reaches every device
it could concern.
"""

from collections.abc import Mapping, Sequence

from agent.trust import Directive
from fleet.errors import ServerError
from fleet.rollout.record import Rollout
from fleet.rollout.spec import bundle_class
from fleet.rollout.states import State

__all__ = ["desired_directives", "is_superseded", "stable_before"]


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
    speaking = [rollout for rollout in rollouts if not is_superseded(rollout, rollouts)]
    speaking.sort(key=lambda rollout: rollout.number)
    return tuple(_directive(rollout, manifest_bytes) for rollout in speaking)


def is_superseded(rollout: Rollout, rollouts: Sequence[Rollout]) -> bool:
    """Whether a newer rollout, promoted to all the devices this one is for, has replaced it."""
    return any(
        newer.number > rollout.number
        and newer.state is State.PROMOTED
        and newer.model == rollout.model
        and bundle_class(newer.bundle) == bundle_class(rollout.bundle)
        and set(newer.spec.selector) <= set(rollout.spec.selector)
        for newer in rollouts
    )


def stable_before(rollout: Rollout, rollouts: Sequence[Rollout]) -> Rollout | None:
    """The newest promoted rollout that every device of ``rollout`` follows otherwise."""
    older = [
        other
        for other in rollouts
        if other.number < rollout.number
        and other.state is State.PROMOTED
        and other.model == rollout.model
        and bundle_class(other.bundle) == bundle_class(rollout.bundle)
        and set(other.spec.selector) <= set(rollout.spec.selector)
    ]
    return max(older, key=lambda other: other.number, default=None)


def _directive(rollout: Rollout, manifest_bytes: Mapping[str, int]) -> Directive:
    length = manifest_bytes.get(rollout.bundle)
    if length is None:
        raise ServerError(
            f"rollout {rollout.id} is about {rollout.bundle}, which the database does not list as "
            "published: publish it again"
        )
    rolled_back = rollout.state is State.ROLLED_BACK
    return Directive(
        id=rollout.id,
        number=rollout.number,
        model=rollout.model,
        bundle=rollout.bundle,
        sha256=rollout.manifest_sha256,
        length=length,
        mode=rollout.spec.strategy,
        percent_bp=0 if rolled_back else rollout.current_stage.percent_bp,
        selector=rollout.spec.selector,
        stage=rollout.stage,
        halt=rollout.state in (State.PAUSED, State.ABORTED),
        kind="rollback" if rolled_back else "deploy",
        not_before_s=0,
        created_s=int(rollout.created_s),
    )
