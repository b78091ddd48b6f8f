"""What an operator can do to a rollout, each in one transaction of the caller's.

Rules kept here: nothing starts that the plan finds a problem with, unless it is forced; of one
model, no two rollouts are under way on the same devices; whoever acts and why is in the trail.
"""

from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy import Connection

from agent.trust import BundleRelease
from fleet.errors import ConflictError, NotFoundError, RefusedError, RequestError
from fleet.rollout import audit, records
from fleet.rollout.directives import stable_before
from fleet.rollout.observe import known_devices
from fleet.rollout.plan import Plan, make_plan
from fleet.rollout.record import Rollout
from fleet.rollout.spec import RolloutSpec, bundle_class, selectors_overlap
from fleet.rollout.states import ACTIVE, Event, State

__all__ = ["OPERATOR_EVENTS", "change", "plan", "start"]

OPERATOR_EVENTS = (Event.PAUSE, Event.RESUME, Event.ABORT, Event.ROLLBACK)
_DONE = {
    Event.PAUSE: "paused",
    Event.RESUME: "resumed",
    Event.ABORT: "aborted",
    Event.ROLLBACK: "rolled back",
}


def plan(
    connection: Connection,
    spec: RolloutSpec,
    releases: Mapping[str, BundleRelease],
    now_s: float,
) -> Plan:
    """Complete ``spec`` from the release and put every known device into its stage.

    Raises:
        NotFoundError: no release is signed for the bundle.
        RequestError: the spec's model or class is not the bundle's.
    """
    release = releases.get(spec.bundle)
    if release is None:
        raise NotFoundError(
            f"{spec.bundle} is not published: see `fleet bundle list`, or publish it with "
            "`fleet bundle publish`"
        )
    spec = _complete(spec, release)
    newest = _draft(spec, release, records.next_number(connection), now_s)
    previous = stable_before(newest, records.all_rollouts(connection))
    return make_plan(
        spec, release, known_devices(connection), now_s, previous.bundle if previous else ""
    )


def start(
    connection: Connection, planned: Plan, now_s: float, *, force: bool = False, by: str = ""
) -> Rollout:
    """Start what was planned.

    Raises:
        RefusedError: the plan has a problem and ``force`` is not set.
        ConflictError: another rollout of the model is under way on some of the same devices.
    """
    spec = planned.spec
    for other in records.all_rollouts(connection):
        if other.state in ACTIVE and _same_devices(other.spec, spec):
            raise ConflictError(
                f"rollout {other.id} of {other.bundle} is {other.state} on some of the same "
                f"devices: wait for it, or end it with `fleet rollout abort {other.id}` or "
                f"`fleet rollout rollback {other.id}`"
            )
    if planned.problems and not force:
        raise RefusedError(
            f"the rollout of {spec.bundle} would not work: {'; '.join(planned.problems)} "
            "(--force starts it all the same)"
        )
    number = records.next_number(connection)
    first = f"started at {spec.stages[0].percent}"
    rollout = Rollout(
        id=f"r{number}",
        number=number,
        model=spec.model,
        bundle=spec.bundle,
        manifest_sha256=planned.manifest_sha256,
        previous_bundle=planned.previous_bundle,
        spec=spec,
        state=State.RUNNING,
        stage=0,
        stage_started_s=now_s,
        reason=first,
        created_s=now_s,
        updated_s=now_s,
    )
    evidence = {"plan": planned.to_json(), "forced": force, "by": by}
    entry = audit.Entry(
        rollout_id=rollout.id,
        at_s=now_s,
        actor=audit.OPERATOR,
        action="start",
        from_state="",
        to_state=str(State.RUNNING),
        stage=0,
        verdict="",
        reason=first + (", although " + "; ".join(planned.problems) if planned.problems else ""),
        evidence=evidence,
    )
    records.add_rollout(connection, rollout, entry)
    return rollout


def change(
    connection: Connection,
    rollout_id: str,
    event: Event,
    now_s: float,
    *,
    reason: str = "",
    by: str = "",
) -> Rollout:
    """Let an operator's event happen.

    Raises:
        NotFoundError: there is no such rollout.
        RequestError: the event is the controller's alone.
        ConflictError: it is not possible in the rollout's state, or a newer one has taken over.
    """
    if event not in OPERATOR_EVENTS:
        raise RequestError(f"{event} is the controller's decision, not an operator's")
    rollout = records.get_rollout(connection, rollout_id)
    if event is Event.ROLLBACK and rollout.state not in ACTIVE:
        _refuse_outdated(connection, rollout)
    said = f"{_DONE[event]} by an operator" + (f": {reason}" if reason else "")
    happening = records.Change(event, audit.OPERATOR, said, now_s, evidence={"by": by})
    return records.apply_change(connection, rollout, happening)


def _refuse_outdated(connection: Connection, rollout: Rollout) -> None:
    """A finished rollout can be rolled back while nothing newer has been started in its place."""
    for newer in records.all_rollouts(connection):
        if newer.number > rollout.number and _same_devices(newer.spec, rollout.spec):
            if newer.state is State.ROLLED_BACK:
                continue  # its devices are back on this one
            raise ConflictError(
                f"rollout {rollout.id} is {rollout.state} and {newer.id} came after it: roll "
                f"{newer.id} back instead, or start a rollout of the bundle you want"
            )


def _same_devices(one: RolloutSpec, other: RolloutSpec) -> bool:
    return (
        one.model == other.model
        and bundle_class(one.bundle) == bundle_class(other.bundle)
        and selectors_overlap(one.selector, other.selector)
    )


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
