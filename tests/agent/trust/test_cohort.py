"""The cohort function: its published values, its nesting, its spread."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.trust import in_cohort, slot_of

DIGEST = "00" * 32
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
device_ids = st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True)


@pytest.mark.parametrize(
    ("digest", "device", "slot"),
    [
        (DIGEST, "cam-1", 5784),
        (DIGEST, "cam-2", 7286),
        ("ab" * 32, "cam-1", 4841),
        ("ab" * 32, "line-7-north", 1590),
    ],
)
def test_values_that_must_never_change(digest: str, device: str, slot: int) -> None:
    assert slot_of(digest, device) == slot


def test_the_published_formula() -> None:
    raw = hashlib.sha256(b"cohort-v1" + bytes(32) + b"cam-1").digest()
    assert slot_of(DIGEST, "cam-1") == int.from_bytes(raw[:8], "big") % 10_000


@given(digests, device_ids, st.integers(0, 10_000), st.integers(0, 10_000))
def test_cohorts_are_nested(digest: str, device: str, one_bp: int, other_bp: int) -> None:
    small_bp, large_bp = sorted((one_bp, other_bp))
    assert in_cohort(digest, device, large_bp) or not in_cohort(digest, device, small_bp)
    assert in_cohort(digest, device, 10_000)
    assert not in_cohort(digest, device, 0)


def test_another_bundle_picks_other_devices() -> None:
    fleet = [f"cam-{number}" for number in range(2_000)]
    first = {device for device in fleet if in_cohort("11" * 32, device, 1_000)}
    second = {device for device in fleet if in_cohort("22" * 32, device, 1_000)}
    assert 150 < len(first) < 250
    assert 150 < len(second) < 250
    assert len(first & second) < 50


@pytest.mark.parametrize("digest", ["", "00", "zz" * 32, "00" * 33])
def test_a_digest_that_is_none_is_refused(digest: str) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        slot_of(digest, "cam-1")
