"""A plan as values: what a rollout would do. Made by ``plan``."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fleet.rollout.fitness import Obstacle
from fleet.rollout.spec import RolloutSpec
from fleet.rollout.wire_bytes import WireBytes

__all__ = ["Plan", "PlannedStage"]


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage: ``devices`` in all, ``added`` by it, some of the added by name.

    ``effects``: by metric, the smallest change that it can be expected to see (1.9: 1.9 times), None
    for none at all; None instead of the mapping where it is not known.
    """

    percent_bp: int
    bake_s: float
    devices: int
    added: int
    sample: tuple[str, ...]
    words: str = ""
    effects: Mapping[str, float | None] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "percent_bp": self.percent_bp,
            "bake_s": self.bake_s,
            "devices": self.devices,
            "added": self.added,
            "sample": list(self.sample),
            "words": self.words,
            "effects": None if self.effects is None else dict(self.effects),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """The stages with their devices. ``matching`` devices are in the pool, ``reachable`` of them now.

    ``held_back``: its ``added`` devices get the bundle last, with the promotion. ``wire`` is None where
    the manifest is not here.
    """

    spec: RolloutSpec
    manifest_sha256: str
    previous_bundle: str
    matching: int
    reachable: int
    stages: tuple[PlannedStage, ...]
    held_back: PlannedStage
    unfit: tuple[Obstacle, ...] = ()
    wire: WireBytes | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def shortest_s(self) -> float:
        """No rollout is faster than its bake times, ramps included."""
        return sum(stage.bake_s for stage in self.stages)

    def saying(self, problems: tuple[str, ...], warnings: tuple[str, ...]) -> "Plan":
        """The same with what stands in its way."""
        return replace(self, problems=problems, warnings=warnings)

    def to_json(self) -> dict[str, Any]:
        return {
            "spec": self.spec.to_json(),
            "manifest_sha256": self.manifest_sha256,
            "previous_bundle": self.previous_bundle,
            "matching": self.matching,
            "reachable": self.reachable,
            "shortest_s": self.shortest_s,
            "stages": [stage.to_json() for stage in self.stages],
            "held_back": {
                "percent_bp": self.spec.hold_back_bp,
                "devices": self.held_back.added,
                "sample": list(self.held_back.sample),
            },
            "unfit": [met.to_json() for met in self.unfit],
            "bytes": None if self.wire is None else self.wire.to_json(),
            "problems": list(self.problems),
            "warnings": list(self.warnings),
        }
