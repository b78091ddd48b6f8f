"""From a strategy and a stage to what the directive says. Pure.

Rules kept here: a stage change is one directive of constant size, whatever the strategy; a bundle
that is held beside answers nobody it was not given (``percent_bp`` stays 0); every strategy ends in a
stage in which the bundle answers on every device but the hold-back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fleet.rollout.spec import ALL_BP, RolloutSpec, Stage, StageKind, Strategy

__all__ = ["Wanted", "kind_of", "misfit", "share_before", "wanted"]

_BESIDE: Final[Mapping[Strategy, StageKind]] = {
    Strategy.SHADOW_THEN_CANARY: StageKind.SHADOW,
    Strategy.AB: StageKind.AB,
    Strategy.BLUE_GREEN: StageKind.STANDBY,
}
"""What a strategy may hold beside the bundle that answers, before it answers itself."""
_MODES: Final[Mapping[StageKind, str]] = {
    StageKind.CANARY: "canary",
    StageKind.SHADOW: "shadow",
    StageKind.AB: "ab",
    StageKind.STANDBY: "blue-green",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The fields of a directive that follow from strategy and stage; named as there."""

    mode: str = "canary"
    percent_bp: int = 0
    beside_bp: int = 0
    traffic_bp: int = 0
    routing_key: str = ""
    from_bp: int = 0
    ramp_s: int = 0
    ramp_doublings: int = 0

    def to_json(self) -> dict[str, Any]:
        """By name, for ``Directive(**...)``."""
        return {name: getattr(self, name) for name in Wanted.__dataclass_fields__}


def kind_of(strategy: Strategy, number: int, count: int) -> StageKind:
    """What stage ``number`` (from 1) of ``count`` is, where the operator does not say."""
    beside = _BESIDE.get(strategy)
    if beside is None:
        return StageKind.CANARY
    if strategy is Strategy.AB:
        return beside if number < count else StageKind.CANARY
    return beside if number == 1 else StageKind.CANARY


def misfit(strategy: Strategy, stages: Sequence[Stage]) -> str:
    """Why these stages are not this strategy; "" when they are."""
    beside = _BESIDE.get(strategy)
    kinds = [stage.kind for stage in stages]
    held = sum(stage.is_beside for stage in stages)
    for number, kind in enumerate(kinds, 1):
        if kind not in (StageKind.CANARY, beside):
            return f"stage {number} is of kind {kind}, which strategy {strategy} does not have"
    if beside is not None and not 0 < held < len(stages):
        return f"strategy {strategy} needs stages of kind {beside} and then of kind canary"
    if any(stage.is_beside for stage in stages[held:]):
        return f"the stages of kind {beside} come before those of kind canary"
    if strategy is Strategy.BLUE_GREEN and (held != 1 or stages[0].percent_bp != ALL_BP):
        return (
            "strategy blue-green begins with one stage of kind standby at 100 %: every device "
            "holds both bundles before any flips"
        )
    if strategy is Strategy.ALL_AT_ONCE and len(stages) != 1:
        return f"strategy all-at-once has one stage, not {len(stages)}: use canary for more"
    return ""


def wanted(spec: RolloutSpec, index: int) -> Wanted:
    """What the directive says in the stage at ``index`` of ``spec.stages``."""
    stage = spec.stages[index]
    if stage.is_beside:
        return Wanted(
            mode=_MODES[stage.kind],
            beside_bp=stage.percent_bp,
            traffic_bp=stage.traffic_bp,
            routing_key=spec.routing_key if stage.kind is StageKind.AB else "",
        )
    is_blue_green = spec.strategy is Strategy.BLUE_GREEN
    ramp_s = round(stage.ramp_s)
    return Wanted(
        mode=_MODES[StageKind.STANDBY] if is_blue_green else _MODES[StageKind.CANARY],
        percent_bp=stage.percent_bp,
        beside_bp=ALL_BP if is_blue_green else 0,
        from_bp=share_before(spec, index) if ramp_s else 0,
        ramp_s=ramp_s,
        ramp_doublings=stage.ramp_doublings if ramp_s else 0,
    )


def share_before(spec: RolloutSpec, index: int) -> int:
    """The share that the stage at ``index`` begins with: that of the stage before it, of one kind."""
    if index == 0 or spec.stages[index - 1].kind is not spec.stages[index].kind:
        return 0
    return spec.stages[index - 1].percent_bp
