"""Who may speak and where a device stands: every case, without a database."""

import itertools
from dataclasses import replace

import pytest

from fleet.errors import ConflictError
from fleet.registry.admission import (
    GRACE_S,
    Known,
    Peer,
    Refusal,
    State,
    judge_call,
    judge_renewal,
)
from fleet.registry.nonces import MAX_NONCES, Nonces
from fleet.registry.rate import RateLimit
from fleet.registry.standing import STEPS, Happening, Standing, step
from fleet.registry.streams import OpenStreams
from protos.identity import DeviceName, Token

NAME = DeviceName("lab", "camera", "cam-1")
PEER = Peer(NAME, "f" * 64)
GOOD = Known(NAME, "ab", State.CURRENT, 0.0, 1000.0, Standing.ACCEPTED)


@pytest.mark.parametrize(
    ("change", "now_s", "refusal"),
    [
        ({}, 0.0, None),
        ({"state": State.ISSUED}, 0.0, None),
        ({}, 1000.0, Refusal.EXPIRED),
        ({"standing": Standing.OPEN}, 0.0, Refusal.NOT_ACCEPTED),
        ({"standing": Standing.PENDING}, 0.0, Refusal.NOT_ACCEPTED),
        ({"standing": Standing.QUARANTINED}, 0.0, Refusal.QUARANTINED),
        ({"standing": Standing.REVOKED}, 0.0, Refusal.REVOKED),
        ({"state": State.REVOKED}, 0.0, Refusal.REVOKED),
        ({"state": State.SUPERSEDED}, GRACE_S, None),
        ({"state": State.SUPERSEDED}, GRACE_S + 1, Refusal.SUPERSEDED),
        ({"name": replace(NAME, device_class="door")}, 0.0, Refusal.UNKNOWN_CERTIFICATE),
        ({"name": replace(NAME, fleet="other")}, 0.0, Refusal.UNKNOWN_CERTIFICATE),
    ],
)
def test_a_call_is_judged(change: dict[str, object], now_s: float, refusal: object) -> None:
    known = replace(GOOD, **change)  # type: ignore[arg-type]
    verdict = judge_call(PEER, known, "cam-1", now_s)
    assert verdict.refusal is refusal
    assert bool(verdict.reason) is (refusal is not None)
    assert verdict.first_use is (refusal is None and known.state is State.ISSUED)


def test_nothing_known_is_a_no_and_another_device_too() -> None:
    assert judge_call(PEER, None, None, 0.0).refusal is Refusal.UNKNOWN_CERTIFICATE
    assert judge_call(PEER, GOOD, "cam-2", 0.0).refusal is Refusal.OTHER_DEVICE
    assert judge_call(PEER, GOOD, None, 0.0).refusal is None


@pytest.mark.parametrize(
    ("state", "refusal"),
    [
        (State.ISSUED, None),
        (State.CURRENT, None),
        (State.SUPERSEDED, Refusal.CLONED),
        (State.REVOKED, Refusal.CLONED),
    ],
)
def test_whoever_renews_with_what_was_left_behind_is_an_alarm(
    state: State, refusal: object
) -> None:
    assert judge_renewal(PEER, replace(GOOD, state=state), 0.0).refusal is refusal
    revoked = replace(GOOD, state=state, standing=Standing.REVOKED)
    assert judge_renewal(PEER, revoked, 0.0).refusal is Refusal.REVOKED  # no alarm: it is known


def test_every_step_is_in_the_table_or_refused_in_words() -> None:
    for standing, happening in itertools.product(Standing, Happening):
        if (standing, happening) in STEPS:
            assert step("cam-1", standing, happening) is STEPS[standing, happening]
        else:
            with pytest.raises(ConflictError, match=f"device cam-1 is {standing}: "):
                step("cam-1", standing, happening)
    into_accepted = {happening for (_, happening), to in STEPS.items() if to is Standing.ACCEPTED}
    assert into_accepted == {Happening.ENROLLED, Happening.ACCEPTED}
    assert all(to is not Standing.OPEN for to in STEPS.values())


def test_rate_each_and_all() -> None:
    now_s = 0.0
    limit = RateLimit(per_minute=4, per_peer_per_minute=2, monotonic_s=lambda: now_s)
    assert [limit.allows("a") for _ in range(3)] == [True, True, False]
    assert [limit.allows("b") for _ in range(3)] == [True, True, False]
    assert limit.allows("c") is False  # all together have had theirs
    now_s = 15.0
    assert limit.allows("c") is True
    now_s = 30.0
    assert [limit.allows("a"), limit.allows("a")] == [True, False]


def test_nonces_are_good_once_for_one_device_and_a_minute() -> None:
    now_s = 0.0
    nonces = Nonces(lambda: now_s)
    first, second, third = (nonces.give("cam-1") for _ in range(3))
    assert nonces.take("cam-1", first) is True
    assert nonces.take("cam-1", first) is False
    assert nonces.take("cam-2", second) is False
    assert nonces.take("cam-1", second) is False
    now_s = 60.0
    assert nonces.take("cam-1", third) is False
    oldest = nonces.give("cam-1")
    for _ in range(MAX_NONCES):
        nonces.give("x")
    assert nonces.take("cam-1", oldest) is False


def test_streams_of_one_device_are_closed_and_forgotten() -> None:
    streams = OpenStreams()
    with streams.entered("cam-1") as one, streams.entered("cam-2") as other:
        assert streams.close("cam-1") == 1
        assert (one.is_set(), other.is_set()) == (True, False)
    assert streams.close("cam-2") == 0


@pytest.mark.parametrize(
    "text", ["", "muster1.short." + "0" * 64, "muster2." + "a" * 43 + "." + "0" * 64,
             "muster1." + "a" * 43 + "." + "G" * 64, "muster1." + "a b" * 20 + "." + "0" * 64]
)  # fmt: skip
def test_what_is_no_token_is_not_repeated_in_the_message(text: str) -> None:
    with pytest.raises(ValueError, match=r"does not have the form muster1\.SECRET") as caught:
        Token.parse(text)
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    ["", "spiffe://lab/device/x", "spiffe://lab/class/c/device/X", "http://lab/class/c/device/x",
     "spiffe://lab/class/c/device/x/y", "spiffe://lab/class/c/device/" + "x" * 41],
)  # fmt: skip
def test_what_is_no_name_of_a_device(uri: str) -> None:
    with pytest.raises(ValueError, match="is not spiffe://"):
        DeviceName.parse(uri)
    assert DeviceName.parse(NAME.uri) == NAME
