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
    ``superseded_by`` (id of a rollout).
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
        """When a device that has begun in this stage should be done.

        Where devices act in maintenance windows only, one that the window closed on has a week more:
        the time until every window has come once.
        """
        waits_s = WEEK_S if self.spec.open_hours else 0.0
        begun_s = self.stage_started_s + self.current_stage.ramp_s
        return begun_s + self.spec.install_deadline_s + waits_s

    @property
    def stopped(self) -> tuple[str, ...]:
        """The strata that leave the bundle again while the others go on, in order."""
        return tuple(self.details.get("stopped", ()))

    def is_approved(self, stage: int) -> bool:
        """Whether the stage with this index may begin, as far as people are asked."""
        approved = stage in self.details.get("approved", ())
        return approved or not self.spec.stages[stage].approval

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
