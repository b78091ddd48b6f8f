"""What a rollout would do, before it does it: who is in which stage, and what stands in the way.

Rules kept here: the plan uses the functions the devices use, so it names the very devices that will
install; a problem keeps a rollout from starting (unless forced), a warning does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from agent.bundle import Manifest
from agent.trust import BundleRelease, selects, slot_of, stratum_of
from fleet.rollout.cautions import problems, warnings
from fleet.rollout.fitness import Candidate, Obstacle, gather, is_meant, obstacle
from fleet.rollout.planned import Plan, PlannedStage
from fleet.rollout.power import Effects, PastCounts, Placed, effects
from fleet.rollout.resolving import resolve
from fleet.rollout.spec import ALL_BP, RolloutSpec
from fleet.rollout.wire_bytes import WireBytes, wire_bytes

__all__ = ["Known", "Plan", "PlannedStage", "candidates_in", "make_plan"]

SAMPLE: Final = 10  # devices named for each stage


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the fleet when a plan is made.

    ``manifests`` by digest, as far as they are here; ``past`` is that of the devices of the pool
    (``candidates_in``), in their order; ``previous_bundle`` is what a rollback goes back to, "" when
    nothing was promoted before.
    """

    candidates: Sequence[Candidate]
    now_s: float
    previous_bundle: str = ""
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    past: PastCounts | None = None


def candidates_in(
    spec: RolloutSpec, release: BundleRelease, candidates: Sequence[Candidate]
) -> list[Candidate]:
    """The pool: the devices that the rollout is for, and that the bundle can run on, by id."""
    hardware = release.hardware
    meant = (device for device in candidates if is_meant(spec, device.facts))
    fit = (device for device in meant if not hardware or device.facts.hardware in hardware)
    return sorted(fit, key=lambda device: device.facts.device_id)


def make_plan(spec: RolloutSpec, release: BundleRelease, known: Known) -> Plan:
    """Put every known device into its stage, and decide what of the spec depends on the fleet."""
    pool = candidates_in(spec, release, known.candidates)
    placed = [_placed(device, release) for device in pool]
    spec = resolve(spec, [device.slot for device in placed])
    seen = effects(spec, placed, known.past)
    stages = _stages(spec, placed, seen)
    held = [device.device_id for device in placed if device.slot >= spec.reach_bp]
    silence_s = spec.guards.silence_s
    plan = Plan(
        spec=spec,
        manifest_sha256=release.sha256,
        previous_bundle=known.previous_bundle,
        matching=len(pool),
        reachable=sum(known.now_s - device.last_seen_s <= silence_s for device in pool),
        stages=stages,
        held_back=PlannedStage(ALL_BP, 0.0, len(pool), len(held), tuple(held[:SAMPLE])),
        unfit=_unfit(spec, release, known),
        wire=_wire(release, known, pool),
    )
    slots = sorted(device.slot for device in placed)
    return plan.saying(problems(plan, slots), warnings(plan, release))


def _placed(device: Candidate, release: BundleRelease) -> Placed:
    facts = device.facts
    return Placed(facts.device_id, stratum_of(facts), slot_of(release.sha256, facts.device_id))


def _stages(
    spec: RolloutSpec, placed: Sequence[Placed], seen: Mapping[int, Effects]
) -> tuple[PlannedStage, ...]:
    stages: list[PlannedStage] = []
    before: set[str] = set()
    for index, stage in enumerate(spec.stages):
        if index and stage.kind is not spec.stages[index - 1].kind:
            before = set()
        inside = {device.device_id for device in placed if device.slot < stage.percent_bp}
        added = sorted(inside - before)
        stages.append(
            PlannedStage(
                percent_bp=stage.percent_bp,
                bake_s=stage.bake_s,
                devices=len(inside),
                added=len(added),
                sample=tuple(added[:SAMPLE]),
                words=stage.words,
                effects=seen.get(index),
            )
        )
        before = inside
    return tuple(stages)


def _unfit(spec: RolloutSpec, release: BundleRelease, known: Known) -> tuple[Obstacle, ...]:
    """What the devices that have the labels asked for would meet."""
    found = []
    for device in known.candidates:
        if not selects(spec.selector, device.facts):
            continue
        met = obstacle(spec, release, known.manifests.get(release.sha256), device)
        if met is not None:
            found.append((device.facts.device_id, *met))
    return gather(found)


def _wire(release: BundleRelease, known: Known, pool: Sequence[Candidate]) -> WireBytes | None:
    manifest = known.manifests.get(release.sha256)
    if manifest is None:
        return None
    return wire_bytes(manifest, release.sha256, [device.serves for device in pool], known.manifests)
