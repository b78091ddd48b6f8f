"""One rollout as it is stored: what was asked for, and where it has got to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fleet.rollout.spec import RolloutSpec, Stage
from fleet.rollout.states import State

__all__ = ["Rollout"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """A row of the table ``rollouts``. ``stage`` is an index into ``spec.stages``.

    ``details`` is what the strategy remembers: stopped strata, approvals, what superseded it.
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
    def is_last_stage(self) -> bool:
        return self.stage == len(self.spec.stages) - 1

    def stage_name(self, stage: int | None = None) -> str:
        """``stage 2 of 3 (50 %)`` for people."""
        index = self.stage if stage is None else stage
        stages = self.spec.stages
        return f"stage {index + 1} of {len(stages)} ({stages[index].percent})"

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
            "percent_bp": self.current_stage.percent_bp,
            "stage_started_s": self.stage_started_s,
            "reason": self.reason,
            "created_s": self.created_s,
            "updated_s": self.updated_s,
            "details": dict(self.details),
        }
