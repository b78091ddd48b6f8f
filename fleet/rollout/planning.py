"""Making a plan from the database: completing what was asked for, and reading what it depends on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from agent.trust import BundleRelease
from fleet.errors import NotFoundError, RequestError
from fleet.monitor.baselines import past_of
from fleet.rollout import records
from fleet.rollout.candidates import ReadManifest, read_candidates, read_manifests
from fleet.rollout.check_addresses import require_tls
from fleet.rollout.directives import stable_before
from fleet.rollout.fitness import Candidate
from fleet.rollout.going_back import older_than_served
from fleet.rollout.plan import Known, Plan, candidates_in, make_plan
from fleet.rollout.power import PastCounts
from fleet.rollout.record import Rollout
from fleet.rollout.spec import RolloutSpec
from fleet.rollout.states import State

__all__ = ["Planned", "plan"]


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and the devices it was made from."""

    plan: Plan
    candidates: list[Candidate]


def plan(
    connection: Connection,
    spec: RolloutSpec,
    releases: Mapping[str, BundleRelease],
    read: ReadManifest,
    now_s: float,
) -> Planned:
    """Complete ``spec`` from the release and put every known device into its stage.

    Raises:
        NotFoundError: no release is signed for the bundle.
        RequestError: the spec's model or class is not the bundle's, or a check would be asked in plain http.
    """
    release = releases.get(spec.bundle)
    if release is None:
        raise NotFoundError(
            f"{spec.bundle} is not published: see `fleet bundle list`, or publish it with "
            "`fleet bundle publish`"
        )
    require_tls(spec.checks)
    spec = _complete(spec, release)
    newest = _draft(spec, release, records.next_number(connection), now_s)
    previous = stable_before(newest, records.all_rollouts(connection))
    candidates = read_candidates(connection, spec.model, release.sha256)
    served = {device.serves for device in candidates}
    known = Known(
        candidates=candidates,
        now_s=now_s,
        previous_bundle=previous.bundle if previous else "",
        manifests=read_manifests(read, {release.sha256, *served}),
        past=_past(connection, spec, candidates_in(spec, release, candidates), now_s),
    )
    made = make_plan(spec, release, known)
    pool = candidates_in(spec, release, candidates)
    back = older_than_served(spec, release, releases, pool)
    return Planned(made.saying((*made.problems, *back), made.warnings), candidates)


def _past(
    connection: Connection, spec: RolloutSpec, pool: Sequence[Candidate], now_s: float
) -> PastCounts:
    """What the devices of the pool reported in the last day."""
    names = [name for name, _ in spec.guards.metrics]
    past = past_of(connection, spec.model, [device.facts.device_id for device in pool], now_s)
    return PastCounts(past.counts(names), past.seconds)


def _complete(spec: RolloutSpec, release: BundleRelease) -> RolloutSpec:
    if spec.model and spec.model != release.model:
        raise RequestError(f"{spec.bundle} is a bundle of model {release.model}, not {spec.model}")
    asked_class = dict(spec.selector).get("class", release.device_class)
    if asked_class != release.device_class:
        raise RequestError(
            f"the selector asks for class {asked_class}, and {spec.bundle} is for class "
            f"{release.device_class}: leave class out of the selector"
        )
    return replace(spec, model=release.model)


def _draft(spec: RolloutSpec, release: BundleRelease, number: int, now_s: float) -> Rollout:
    """The rollout as it would be, to ask what came before it."""
    return Rollout(
        id=f"r{number}",
        number=number,
        model=spec.model,
        bundle=spec.bundle,
        manifest_sha256=release.sha256,
        previous_bundle="",
        spec=spec,
        state=State.RUNNING,
        stage=0,
        stage_started_s=now_s,
        reason="",
        created_s=now_s,
        updated_s=now_s,
    )
