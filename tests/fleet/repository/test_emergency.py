"""What the emergency role is made to say, and that a device reads it so."""

import pytest

from agent.trust import Emergency
from agent.trust.emergency import check_target
from agent.trust.errors import MalformedError
from fleet.errors import RefusedError
from fleet.repository.emergency import EMERGENCY_S, EmergencyChange, next_emergency, read_entry

NOW_S = 1_800_000_000.0
A, B = "a" * 64, "b" * 64


def test_blocks_add_up_and_are_taken_back_by_name() -> None:
    first = next_emergency(None, EmergencyChange(block={A: "leaks"}), NOW_S)
    second = next_emergency(first, EmergencyChange(block={B: "slow"}, lift=[A]), NOW_S + 5)
    assert (first.version, second.version) == (1, 2)
    assert second.expires.timestamp() == NOW_S + 5 + EMERGENCY_S
    held = read_entry(second)
    assert (dict(held.blocked), held.lifted) == ({A: "leaks", B: "slow"}, (A,))
    third = next_emergency(second, EmergencyChange(unblock=[A], unlift=[A]), NOW_S)
    assert (dict(read_entry(third).blocked), read_entry(third).lifted) == ({B: "slow"}, ())


def test_a_device_reads_what_was_signed() -> None:
    role = next_emergency(None, EmergencyChange(block={A: "leaks"}, lift=[B]), NOW_S)
    ((path, target),) = role.targets.items()
    entry = check_target(path, target.length, target.hashes["sha256"], target.custom)
    assert entry == Emergency(id="fleet", blocked={A: "leaks"}, lifted=(B,), signed_at_s=int(NOW_S))
    assert path == "rollouts/fleet/emergency"
    changed = {**target.custom, "blocked": {}}
    with pytest.raises(MalformedError, match="one thing in its target"):
        check_target(path, target.length, target.hashes["sha256"], changed)


@pytest.mark.parametrize(
    "change",
    [
        EmergencyChange(block={"x": "no digest"}),
        EmergencyChange(unblock=[A]),
        EmergencyChange(unlift=[A]),
        EmergencyChange(block={f"{number:064x}": "" for number in range(1025)}),
    ],
)
def test_what_devices_would_not_understand_is_not_signed(change: EmergencyChange) -> None:
    with pytest.raises(RefusedError):
        next_emergency(None, change, NOW_S)


@pytest.mark.parametrize(
    "custom",
    [
        None,
        {},
        [],
        {"id": "fleet", "blocked": [], "lifted": [], "signed_at_s": 1},
        {"id": "fleet", "blocked": {}, "lifted": {}, "signed_at_s": 1},
        {"id": "fleet", "blocked": {}, "lifted": [1], "signed_at_s": 1},
        {"id": "fleet", "blocked": {}, "lifted": [], "signed_at_s": "1"},
        {"id": "../x", "blocked": {}, "lifted": [], "signed_at_s": 1},
        {"id": 7, "blocked": {}, "lifted": [], "signed_at_s": 1},
    ],
)
def test_an_entry_that_is_none_is_refused(custom: object) -> None:
    with pytest.raises(MalformedError):
        Emergency.from_json(custom)


def test_of_an_entry_of_a_newer_fleet_the_blocks_count_and_the_lifts_do_not() -> None:
    newer = {"id": "fleet", "blocked": {A: "x"}, "lifted": [B], "signed_at_s": 1, "new": True}
    entry = Emergency.from_json(newer)
    assert (dict(entry.blocked), entry.lifted) == ({A: "x"}, ())
