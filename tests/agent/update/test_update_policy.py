"""What the policy chooses, and that it is a function: the same answer twice, nothing changed."""

import itertools
from dataclasses import replace

import pytest

from agent.trust import Decision, Directive, Reason, Tries, Verb
from agent.trust.release import BundleRelease
from agent.update import Deployment, Event, Installed, ModelRecord, Phase, Slots, UpdateLimits
from agent.update.policy import (
    Action,
    ActionKind,
    after_event,
    choose,
    kept_slots,
    on_restart,
    slots_after_commit,
    slots_after_revert,
)
from agent.update.states import NOT_SWAPPED

A, B, C = "a" * 64, "b" * 64, "c" * 64
LIMITS = UpdateLimits()


def installed(digest: str, rollout: str = "r0") -> Installed:
    return Installed(digest, "1", f"bundles/pi/m-{digest[0]}", rollout)


def going(digest: str, phase: Phase, rollout: str = "r1", **changes) -> Deployment:
    made = Deployment("d1", rollout, "m", f"bundles/pi/m-{digest[0]}", digest, 10, 0.0, phase)
    return replace(made, **changes)


def decision(verb: Verb, digest: str, rollout: str = "r1", *, to: str | None = None, **changes):
    bundle = f"bundles/pi/m-{digest[0]}"
    directive = Directive(
        id=rollout, number=1, model="m", bundle=bundle, sha256=digest, length=10, **changes
    )
    release = None
    if to is not None:
        release = BundleRelease(
            path=f"bundles/pi/m-{to[0]}", sha256=to, length=10, model="m", version="1",
            device_class="pi",
        )  # fmt: skip
    return Decision("m", verb, Reason.IN_COHORT, "because", release, directive)


def kind(action: Action | None) -> ActionKind | None:
    return action.kind if action is not None else None


def test_every_combination_has_one_answer_and_keeps_its_promises():
    slots = [Slots(), Slots(installed(A)), Slots(installed(A), installed(B)), Slots(installed(B))]
    pendings = [None, *(going(d, p) for d in (A, B, C) for p in Phase if p is not Phase.IDLE)]
    decisions = [
        None,
        decision(Verb.BESIDE, B, mode="shadow", traffic_bp=100),
        *(decision(v, d, to=to) for v in Verb for d in (A, B, C) for to in (None, A, B, C)),
    ]
    refusals = [{}, {("r1", B): Tries()}, {("r1", C): Tries()}]
    for s, pending, wish, refused in itertools.product(slots, pendings, decisions, refusals):
        record = ModelRecord("m", s, pending)
        action = choose(record, wish, refused)
        assert choose(record, wish, refused) == action
        phase = pending.phase if pending else None
        if kind(action) is ActionKind.CANCEL:
            assert phase in NOT_SWAPPED
        if kind(action) is ActionKind.WITHDRAW:
            assert phase in (Phase.BESIDE, Phase.SWAP, Phase.PROBATION)
            assert wish.verb is Verb.REVERT
        if kind(action) in (ActionKind.START, ActionKind.ROLL_BACK, ActionKind.ADOPT):
            assert pending is None
            assert action.start.model == "m"
        if kind(action) is ActionKind.START:
            assert ("r1", action.start.manifest_sha256) not in refused
            assert s.active is None or s.active.manifest_sha256 != action.start.manifest_sha256
        if kind(action) is ActionKind.ROLL_BACK:
            assert action.start.manifest_sha256 == s.active.manifest_sha256
            assert action.start.previous_sha256 != action.start.manifest_sha256
        if phase in (Phase.COMMIT, Phase.REVERT):
            assert action is None
        _check_beside(record, wish, refused, action)


def _check_beside(record, wish, refused, action):
    pending = record.deployment
    if kind(action) in (ActionKind.TAKE, ActionKind.RETARGET):
        assert pending.phase in NOT_SWAPPED
        again = choose(record.with_deployment(action.start), wish, refused)
        assert kind(again) in (None, ActionKind.TAKE), "it is done once"
        assert (action.start.id, action.start.phase) == (pending.id, pending.phase)
    if kind(action) is ActionKind.TAKE:
        assert pending.phase is Phase.BESIDE
        assert wish.verb is Verb.INSTALL
    if kind(action) is ActionKind.START and action.start.beside:
        assert wish.verb is Verb.BESIDE
        assert record.slots.active is not None


@pytest.mark.parametrize(
    ("slots", "to", "refused", "expected", "target"),
    [
        (Slots(installed(A), installed(B)), None, (), ActionKind.ROLL_BACK, B),
        (Slots(installed(A), installed(B)), B, (), ActionKind.ROLL_BACK, B),
        (Slots(installed(A), installed(B)), C, (), ActionKind.START, C),
        (Slots(installed(A), installed(B)), C, (("r1", C),), ActionKind.ROLL_BACK, B),
        (Slots(installed(A)), C, (), ActionKind.START, C),
        (Slots(installed(A)), C, (("r1", C),), None, None),
        (Slots(installed(A)), None, (), ActionKind.ROLL_BACK, None),
        (Slots(installed(B)), C, (), None, None),
    ],
)
def test_where_a_rollback_of_a_goes(slots, to, refused, expected, target):
    wish = decision(Verb.REVERT, A, to=to, kind="rollback")
    action = choose(ModelRecord("m", slots), wish, dict.fromkeys(refused, Tries()))
    assert kind(action) is expected
    if expected is ActionKind.START:
        assert (action.start.manifest_sha256, action.start.replaces) == (target, A)
    if expected is ActionKind.ROLL_BACK:
        assert action.start.previous_sha256 == target


def test_a_directive_is_adopted_only_when_it_deploys_and_is_not_halted():
    record = ModelRecord("m", Slots(installed(A, "r0")))
    assert kind(choose(record, decision(Verb.KEEP, A, "r1"), {})) is ActionKind.ADOPT
    assert choose(record, decision(Verb.KEEP, A, "r0"), {}) is None
    assert choose(record, decision(Verb.KEEP, A, "r1", halt=True), {}) is None
    assert choose(record, decision(Verb.KEEP, A, "r1", kind="rollback"), {}) is None


@pytest.mark.parametrize(
    ("phase", "counts", "event", "code"),
    [
        (Phase.FETCH, {"attempt": 99}, Event.RESTARTED, ""),
        (Phase.VERIFY, {"attempt": 3}, Event.RESTARTED, ""),
        (Phase.VERIFY, {"attempt": 4}, Event.REFUSED, "verify_crashed_device"),
        (Phase.TRY, {"attempt": 1}, Event.RESTARTED, ""),
        (Phase.TRY, {"attempt": 2}, Event.REFUSED, "trial_crashed_device"),
        (Phase.SWAP, {"boots": 0}, Event.RESTARTED, ""),
        (Phase.SWAP, {"boots": 1}, Event.SWAP_FAILED, "swap_restarts"),
        (Phase.SWAP, {"boots": 1, "stopped": True}, Event.RESTARTED, ""),
        (Phase.PROBATION, {"boots": 0}, Event.RESTARTED, ""),
        (Phase.PROBATION, {"boots": 1}, Event.FAILED, "probation_restarts"),
        (Phase.PROBATION, {"boots": 1, "stopped": True}, Event.RESTARTED, ""),
        (Phase.COMMIT, {"boots": 9}, Event.RESTARTED, ""),
        (Phase.REVERT, {"attempt": 9}, Event.RESTARTED, ""),
    ],
)
def test_restarts_are_counted_and_bounded(phase, counts, event, code):
    found, deployment = on_restart(going(A, phase, **counts), LIMITS)
    assert (found, deployment.reason_code) == (event, code)
    if code:
        assert "bundles/pi/m-a" in deployment.reason
    after_event(deployment, found)  # the table has it


def test_attempts_are_shared_by_fetch_and_verify_and_begin_anew_with_the_trial():
    deployment = after_event(going(A, Phase.FETCH), Event.FETCHED)
    deployment = after_event(after_event(deployment, Event.DAMAGED), Event.FETCHED)
    assert (deployment.phase, deployment.attempt) == (Phase.VERIFY, 2)
    assert after_event(deployment, Event.VERIFIED).attempt == 1


def test_slots_after_each_end():
    slots = Slots(installed(A), installed(B))
    new = going(C, Phase.COMMIT)
    assert slots_after_commit(slots, new) == Slots(new.installed, installed(A))
    assert slots_after_commit(slots, replace(new, replaces=A)) == Slots(new.installed, None)
    assert slots_after_commit(Slots(), new) == Slots(new.installed, None)
    assert slots_after_revert(slots, going(C, Phase.REVERT), A) == slots
    assert slots_after_revert(slots, going(A, Phase.REVERT), B) == Slots(installed(B), None)
    assert slots_after_revert(slots, going(A, Phase.REVERT), None) == Slots(None, None)


def test_what_stays_on_disk():
    record = ModelRecord("m", Slots(installed(A)), going(B, Phase.TRY, previous_sha256=C))
    assert kept_slots([record]) == {A, B, C}
    assert kept_slots({"m": record, "n": ModelRecord("n")}) == {A, B, C}


# --- blocked and stale ----------------------------------------------------------------------------


def blocked(leaves: str, **changes) -> Decision:
    return Decision("m", Verb.REVERT, Reason.BLOCKED, "it leaks", leaves=leaves, **changes)


def test_a_blocked_bundle_that_no_directive_names_goes_back_to_the_previous_one():
    record = ModelRecord("m", Slots(installed(B, "r7"), installed(A)))
    action = choose(record, blocked(B), {})
    assert kind(action) is ActionKind.ROLL_BACK
    assert action is not None
    assert action.start is not None
    assert (action.start.rollout_id, action.start.previous_sha256) == ("r7", A)
    assert (action.start.reason_code, action.start.reason) == ("blocked", "it leaks")


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (Phase.FETCH, ActionKind.CANCEL),
        (Phase.TRY, ActionKind.CANCEL),
        (Phase.BESIDE, ActionKind.WITHDRAW),
        (Phase.PROBATION, ActionKind.WITHDRAW),
    ],
)
def test_a_blocked_bundle_under_way_is_called_off(phase, expected):
    record = ModelRecord("m", Slots(installed(A)), going(B, phase))
    assert kind(choose(record, blocked(B), {})) is expected


def test_a_blocked_previous_bundle_is_forgotten_once_nothing_is_under_way():
    keep = replace(decision(Verb.KEEP, A, "r0"), forgets_previous=True)
    record = ModelRecord("m", Slots(installed(A), installed(B)))
    assert kind(choose(record, keep, {})) is ActionKind.FORGET_PREVIOUS
    assert kind(choose(record.with_deployment(going(C, Phase.SWAP)), keep, {})) is None
    assert choose(ModelRecord("m", Slots(installed(A))), keep, {}) is None


def test_stale_metadata_begins_nothing_and_holds_what_is_under_way():
    stale = replace(decision(Verb.INSTALL, B, to=B), reason=Reason.STALE_METADATA)
    assert choose(ModelRecord("m", Slots(installed(A))), stale, {}) is None
    held = choose(ModelRecord("m", Slots(installed(A)), going(B, Phase.FETCH)), stale, {})
    assert kind(held) is ActionKind.RETARGET
    assert held is not None
    assert held.start is not None
    assert held.start.closed
