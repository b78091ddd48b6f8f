"""What came of the demonstration: values, and the same as JSON and as tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fleet.demo.traffic import Sample, Score, Traffic, score

__all__ = ["DemoResult", "RolloutResult", "summarise"]


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """One rollout; the times are of the monotonic clock, seconds."""

    id: str
    version: str
    state: str
    reason: str
    exposed_devices: int
    began_s: float
    ended_s: float
    settled_s: float


@dataclass(frozen=True, slots=True)
class DemoResult:
    """``spans`` are before, during and after the rollout of the broken bundle."""

    rollouts: tuple[RolloutResult, ...]
    versions: dict[str, Score]
    offline_accuracy: dict[str, float]
    spans: dict[str, Score]
    requests: int
    failed_requests: int
    errors: tuple[str, ...]
    fleet_size: int
    duration_s: float

    @property
    def promoted(self) -> bool:
        """The better bundle reached the whole fleet."""
        return self.rollouts[1].state == "promoted"

    @property
    def rolled_back(self) -> bool:
        """The broken bundle did not."""
        return self.rollouts[2].state == "rolled_back"

    @property
    def ok(self) -> bool:
        return self.promoted and self.rolled_back and self.failed_requests == 0

    def to_json(self) -> dict[str, Any]:
        """For machines; one object."""
        return {
            "ok": self.ok,
            "promoted": self.promoted,
            "rolled_back": self.rolled_back,
            "requests": self.requests,
            "failed_requests": self.failed_requests,
            "errors": list(self.errors),
            "exposed_devices": self.rollouts[2].exposed_devices,
            "fleet_size": self.fleet_size,
            "accuracy": {version: one.accuracy for version, one in self.versions.items()},
            "accuracy_on_test_images": self.offline_accuracy,
            "accuracy_over_time": {span: one.accuracy for span, one in self.spans.items()},
            "latency_ms": {
                version: {"p50": one.p50_ms, "p99": one.p99_ms}
                for version, one in self.versions.items()
            },
            "rollouts": [
                {
                    "id": one.id,
                    "version": one.version,
                    "state": one.state,
                    "reason": one.reason,
                    "exposed_devices": one.exposed_devices,
                    "seconds": round(one.ended_s - one.began_s, 1),
                }
                for one in self.rollouts
            ],
            "duration_s": round(self.duration_s, 1),
        }


def summarise(
    rollouts: Sequence[RolloutResult],
    traffic: Traffic,
    offline_accuracy: dict[str, float],
    *,
    fleet_size: int,
    duration_s: float,
) -> DemoResult:
    """Put the samples of the clients and the ends of the rollouts together."""
    samples = list(traffic.samples)
    broken = rollouts[-1]

    def between(start_s: float, end_s: float) -> list[Sample]:
        return [sample for sample in samples if start_s <= sample.at_s < end_s]

    return DemoResult(
        rollouts=tuple(rollouts),
        versions={
            one.version: score([sample for sample in samples if sample.version == one.version])
            for one in rollouts
        },
        offline_accuracy=offline_accuracy,
        spans={
            "before": score(between(rollouts[-2].ended_s, broken.began_s)),
            "during": score(between(broken.began_s, broken.ended_s)),
            "after": score(between(broken.ended_s, float("inf"))),
        },
        requests=len(samples),
        failed_requests=sum(not sample.version for sample in samples),
        errors=tuple(traffic.errors),
        fleet_size=fleet_size,
        duration_s=duration_s,
    )
