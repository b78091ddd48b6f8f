"""Stores in memory: what they keep is little, what they refuse is the same."""

import hashlib

import pytest

from agent.bundle import BundleFileError, manifest_sha256, parse_manifest
from agent.delivery import PieceDigestError
from agent.errors import DeviceError
from agent.trust import TrustState
from agent.update.journal import ModelRecord, Refusal
from simulator.library import Library, digest_in
from simulator.stores import MemoryJournal, MemoryPieces, MemorySlots, MemoryTrustStore
from tests.support.signed_fleet import raw_manifest

DATA = b"m 1 "
DIGEST = hashlib.sha256(DATA).hexdigest()


def holding() -> MemoryPieces:
    pieces = MemoryPieces()
    pieces.append(DIGEST, 0, DATA[:2])
    pieces.append(DIGEST, 2, DATA[2:])
    pieces.complete(DIGEST, len(DATA))
    return pieces


def test_a_piece_is_hashed_while_it_arrives():
    pieces = MemoryPieces()
    pieces.append(DIGEST, 0, DATA[:3])
    assert (pieces.partial_size(DIGEST), pieces.has(DIGEST)) == (3, False)
    pieces.append(DIGEST, 3, DATA[3:])
    pieces.complete(DIGEST, len(DATA))
    assert (pieces.partial_size(DIGEST), pieces.has(DIGEST)) == (0, True)


@pytest.mark.parametrize(("data", "size"), [(b"x" * len(DATA), len(DATA)), (DATA, len(DATA) + 1)])
def test_a_piece_with_other_bytes_is_thrown_away(data, size):
    pieces = MemoryPieces()
    pieces.append(DIGEST, 0, data)
    with pytest.raises(PieceDigestError):
        pieces.complete(DIGEST, size)
    assert (pieces.partial_size(DIGEST), pieces.has(DIGEST)) == (0, False)


def test_a_gap_is_refused():
    pieces = MemoryPieces()
    pieces.append(DIGEST, 0, DATA[:2])
    with pytest.raises(DeviceError, match="continued at 3"):
        pieces.append(DIGEST, 3, DATA[3:])


def test_pieces_that_nobody_wants_are_forgotten():
    pieces = holding()
    pieces.append("ab" * 32, 0, b"x")
    pieces.keep_only(frozenset({DIGEST}))
    assert pieces.has(DIGEST)
    assert pieces.partial_size("ab" * 32) == 0
    pieces.discard(DIGEST)
    assert not pieces.has(DIGEST)
    with pytest.raises(DeviceError, match="thrown away"):
        pieces.read(DIGEST)


def test_a_slot_is_sealed_only_when_every_piece_is_here():
    raw = raw_manifest("m", "1")
    slots = MemorySlots(Library())
    with pytest.raises(BundleFileError, match=r"m\.onnx needs piece"):
        slots.stage(parse_manifest(raw), raw, MemoryPieces())
    slots.stage(parse_manifest(raw), raw, holding())
    slots.verify(manifest_sha256(raw))
    assert digest_in(slots.path(manifest_sha256(raw))) == manifest_sha256(raw)


def test_devices_share_a_manifest_but_not_a_slot():
    raw, library = raw_manifest("m", "1"), Library()
    one, two, three = MemorySlots(library), MemorySlots(library), MemorySlots(library)
    for slots in (one, two):
        slots.stage(parse_manifest(raw), raw, holding())
    digest = manifest_sha256(raw)
    assert one.manifest(digest) is two.manifest(digest)
    assert three.manifest(digest) is None
    one.keep_only(frozenset())
    with pytest.raises(DeviceError, match="there is no slot"):
        one.verify(digest)
    two.verify(digest)


def test_the_journal_gives_back_what_was_saved():
    journal = MemoryJournal()
    assert journal.load().models == {}
    refusal = Refusal("r1", DIGEST, "trial_crashed", "it crashed")
    journal.save(ModelRecord("vad"))
    journal.save(ModelRecord("digits"), refusal)
    assert set(journal.load().models) == {"vad", "digits"}
    assert journal.load().refusals == (refusal,)


def test_the_trust_store_gives_back_the_same_state():
    store, state = MemoryTrustStore(), TrustState(floor_s=7.0)
    assert store.load() == TrustState()
    store.save(state)
    assert store.load() is state
