"""Whether a directive is meant for this device at all, and from when on."""

from agent.trust.decision import Reason, Verb
from agent.trust.directive import Directive
from agent.trust.turns import excluded, is_stopped, selects
from agent.trust.world import Finding, World

__all__ = ["left_out", "not_meant", "takes_back", "too_early"]


def not_meant(world: World, directive: Directive) -> Finding | None:
    """None when the directive is meant for this device, else why it is not."""
    facts = world.facts
    if directive.device_class != facts.device_class:
        text = (
            f"the bundle is for class {directive.device_class}, this device is {facts.device_class}"
        )
        return Finding(Verb.NONE, Reason.OTHER_CLASS, text)
    if not selects(directive.selector, facts):
        wanted = ", ".join(f"{label}={value}" for label, value in directive.selector)
        return Finding(
            Verb.NONE, Reason.NOT_SELECTED, f"this device does not have the labels {wanted}"
        )
    return None


def left_out(world: World, directive: Directive) -> Finding | None:
    """None unless a label of this device leaves it out."""
    pair = excluded(directive.exclude, world.facts)
    if pair is None:
        return None
    text = f"devices with the label {pair[0]}={pair[1]} are left out of {directive.id}"
    return Finding(Verb.NONE, Reason.EXCLUDED, text)


def takes_back(world: World, directive: Directive) -> bool:
    """Whether a directive makes this device leave its bundle: for the whole fleet or for its stratum."""
    if directive.kind != "rollback" and not is_stopped(directive, world.facts):
        return False
    return not_meant(world, directive) is None


def too_early(world: World, directive: Directive) -> Finding | None:
    """None unless installing has not begun yet."""
    if world.now_s >= directive.not_before_s:
        return None
    text = f"installing {directive.bundle} begins at {directive.not_before_s} s since the epoch"
    return Finding(Verb.NONE, Reason.TOO_EARLY, text)
