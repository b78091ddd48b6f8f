"""Records from which a decision is made again, and the bytes that values are stored as."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fleet.rollout.gate.evidence import canonical, hashes, record, replay
from fleet.rollout.gate.frames import pack, unpack
from fleet.rollout.gate.look import look
from fleet.rollout.gate.ring import Counts, Ring, State
from tests.support.rings import Setting, cohort_factor, play, population

DRAWN = population(np.random.default_rng(1), Setting(size=100, canaries=20))


def recorded(number: int = 4) -> tuple[dict[str, object], Counts]:
    """The record of a look in the middle of a ring, as it comes back from a database."""
    before = State()
    factor = cohort_factor(DRAWN.ring, 1.2)
    for result, after, counts in play(np.random.default_rng(2), DRAWN, factor):
        if result.look == number:
            made = record(DRAWN.ring, before, counts, (result, after), "1.2.3")
            return json.loads(json.dumps(made)), counts
        before = after
    raise AssertionError("the ring ended before")


def test_a_decision_is_made_again_byte_for_byte() -> None:
    found, counts = recorded()
    ring = Ring.from_bytes(DRAWN.ring.to_bytes())
    stored = Counts.from_bytes(counts.to_bytes())
    assert replay(found, ring, stored) == []
    before = State.from_bytes(bytes.fromhex(str(found["state_before"])))
    outcome = look(ring, before, stored, 4)
    again = record(ring, before, stored, outcome, "1.2.3")
    assert json.dumps(again, sort_keys=True) == json.dumps(found, sort_keys=True)


def test_every_change_is_found() -> None:
    found, counts = recorded()
    bad = counts.bad["error_rate"].copy()
    bad[7] += 1
    changed = Counts({"error_rate": bad}, counts.total)
    differences = replay(found, DRAWN.ring, changed)
    assert any(line.startswith("hashes.counts: recorded ") for line in differences)
    result = found["result"]
    assert isinstance(result, dict)
    forged = {**found, "result": {**result, "p_value": result["p_value"] / 10}}
    assert [line.partition(":")[0] for line in replay(forged, DRAWN.ring, counts)] == [
        "result.p_value"
    ]
    other = replace(DRAWN.ring, cohort=np.roll(DRAWN.ring.cohort, 1))
    assert any("hashes.cohort" in line for line in replay(found, other, counts))


def test_a_record_of_another_format_is_refused() -> None:
    found, counts = recorded()
    with pytest.raises(ValueError, match="has format 2; this version reads 1"):
        replay({**found, "format": 2}, DRAWN.ring, counts)


def test_hashes_tell_what_changed() -> None:
    counts = recorded()[1]
    one = hashes(DRAWN.ring, counts)
    assert one.keys() == {"pool", "cohort", "baseline", "counts"}
    base = DRAWN.ring.baseline["error_rate"]
    other = replace(DRAWN.ring, baseline={"error_rate": replace(base, mu=base.mu * (1 + 1e-15))})
    two = hashes(other, counts)
    assert [name for name in one if one[name] != two[name]] == ["baseline"]


def test_canonical_bytes_keep_values_apart() -> None:
    values = [
        None, True, False, 0, 1, 0.0, 1.0, "", "1", [], {}, [[]], ["a", "b"], ["ab"], {"a": 1},
        np.array([1, 2]), np.array([1.0, 2.0]), np.array([[1, 2]]), np.array([True]),
    ]  # fmt: skip
    assert len({canonical(value) for value in values}) == len(values)
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})
    assert canonical(np.array([1, 2], dtype=">i8")) == canonical(np.array([1, 2], dtype="<i8"))
    assert canonical(np.float64(0.1)) == canonical(0.1)
    with pytest.raises(TypeError, match="set has no canonical bytes"):
        canonical({1})


def test_frames_keep_every_bit() -> None:
    arrays = {"x": np.array([[1.5, np.nan], [-0.0, 1e-300]]), "y": np.array([], dtype=np.int16)}
    data = pack("thing", {"pi": 3.141592653589793}, arrays)
    values, again = unpack("thing", data)
    assert values == {"pi": 3.141592653589793}
    assert again["x"].tobytes() == arrays["x"].tobytes()
    assert again["y"].dtype == np.int16
    assert pack("thing", values, again) == data


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:5], "has at least 14 bytes, not 5"),
        (lambda data: b"X" + data[1:], "is no stored state of version 1"),
        (lambda data: data[:5] + b"\x02" + data[6:], "another version of the fleet manager"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "its checksum is wrong"),
        (lambda data: data[:-1], "its checksum is wrong"),
    ],
)
def test_what_is_damaged_is_refused(damage: object, message: str) -> None:
    data = look(DRAWN.ring, State(), recorded()[1], 4)[1].to_bytes()
    with pytest.raises(ValueError, match=message):
        State.from_bytes(damage(data))  # type: ignore[operator]


def test_a_thing_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="this is a stored ring, not a state"):
        State.from_bytes(DRAWN.ring.to_bytes())
