"""One rollout as it is stored: what was asked for, and where it has got to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fleet.rollout.spec import ALL_BP, RolloutSpec, Stage
from fleet.rollout.states import State

__all__ = ["Rollout"]

WEEK_S: Final = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Rollout:
    """A row of the table ``rollouts``. ``stage`` is an index into ``spec.stages``.

    ``details`` is what the strategy remembers: ``stopped`` (strata), ``approved`` (indices of stages),
    ``superseded_by`` (id of a rollout); and where a second person is asked for: ``second_above_bp`` (of
    the fleet), ``moved_by`` (who started it or went on in spite of the gate), ``approved_by`` (names, by
    index of the stage as a text).
    """

    id: str
    number: int
    model: str
    bundle: str
    manifest_sha256: str
    previous_bundle: str
    spec: RolloutSpec
    state: State
    stage: int
    stage_started_s: float
    reason: str
    created_s: float
    updated_s: float
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def current_stage(self) -> Stage:
        return self.spec.stages[self.stage]

    @property
    def percent_bp(self) -> int:
        """The share of the fleet it has got to; with a promotion the hold-back follows."""
        return ALL_BP if self.state is State.PROMOTED else self.current_stage.percent_bp

    @property
    def is_last_stage(self) -> bool:
        return self.stage == len(self.spec.stages) - 1

    @property
    def deadline_s(self) -> float:
        """When a device that began with this stage, or in its ramp, should be done."""
        return self.deadline_of(0.0)

    def deadline_of(self, begun_s: float) -> float:
        """When a device that began at ``begun_s`` should be done: each has its own time.

        Where devices act in maintenance windows only, one that the window closed on has a week more:
        the time until every window has come once.
        """
        waits_s = WEEK_S if self.spec.open_hours else 0.0
        from_s = max(self.stage_started_s + self.current_stage.ramp_s, begun_s)
        return from_s + self.spec.install_deadline_s + waits_s

    @property
    def stopped(self) -> tuple[str, ...]:
        """The strata that leave the bundle again while the others go on, in order."""
        return tuple(self.details.get("stopped", ()))

    @property
    def moved_by(self) -> tuple[str, ...]:
        """Who started it or went on in spite of the gate: none of them can be its second person."""
        return tuple(self.details.get("moved_by", ()))

    def needs_second(self, stage: int) -> bool:
        """Whether somebody else than who moved it has to approve the stage with this index.

        With the last stage the hold-back follows, so that one reaches everyone.
        """
        above_bp = self.details.get("second_above_bp")
        is_last = stage == len(self.spec.stages) - 1
        reach_bp = ALL_BP if is_last else self.spec.stages[stage].percent_bp
        return above_bp is not None and reach_bp > above_bp

    def needs_approval(self, stage: int) -> bool:
        """Whether a person has to approve the stage with this index, whoever it is."""
        return self.spec.stages[stage].approval or self.needs_second(stage)

    def approved_by(self, stage: int) -> tuple[str, ...]:
        """The names of those who approved the stage with this index."""
        return tuple(self.details.get("approved_by", {}).get(str(stage), ()))

    def is_approved(self, stage: int, mover: str = "") -> bool:
        """Whether the stage with this index may begin, as far as people are asked.

        Args:
            mover: who would let it begin in spite of the gate; no second person either.
        """
        if self.needs_second(stage):
            return bool(set(self.approved_by(stage)) - {"", mover, *self.moved_by})
        approved = stage in self.details.get("approved", ())
        return approved or not self.spec.stages[stage].approval

    def approver_words(self, stage: int) -> str:
        """``approval``, or ``approval by another than ada``."""
        if not self.needs_second(stage):
            return "approval"
        return f"approval by another than {' and '.join(self.moved_by) or 'who started it'}"

    def stage_name(self, stage: int | None = None) -> str:
        """``stage 2 of 3 (50 %)`` for people."""
        index = self.stage if stage is None else stage
        stages = self.spec.stages
        return f"stage {index + 1} of {len(stages)} ({stages[index].words})"

    def to_json(self) -> dict[str, Any]:
        """For the API."""
        return {
            "id": self.id,
            "number": self.number,
            "model": self.model,
            "bundle": self.bundle,
            "manifest_sha256": self.manifest_sha256,
            "previous_bundle": self.previous_bundle,
            "spec": self.spec.to_json(),
            "state": str(self.state),
            "stage": self.stage,
            "stages": len(self.spec.stages),
            "percent_bp": self.percent_bp,
            "stage_started_s": self.stage_started_s,
            "reason": self.reason,
            "created_s": self.created_s,
            "updated_s": self.updated_s,
            "details": dict(self.details),
        }
