"""Pieces on a real disk."""

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters.piece_store import FilePieceStore
from agent.delivery import DiskFullError, PieceDigestError
from agent.errors import DeviceError

DATA = b"weights" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def store(tmp_path) -> FilePieceStore:
    return FilePieceStore(tmp_path / "pieces")


def names(tmp_path) -> set[str]:
    return {path.name for path in (tmp_path / "pieces").iterdir()}


def test_a_piece_in_two_parts(store, tmp_path):
    store.append(DIGEST, 0, DATA[:100])
    assert not store.has(DIGEST)
    assert store.partial_size(DIGEST) == 100
    store.append(DIGEST, 100, DATA[100:])
    store.complete(DIGEST, len(DATA))
    assert store.has(DIGEST)
    assert store.read(DIGEST) == DATA
    assert store.partial_size(DIGEST) == 0
    assert names(tmp_path) == {DIGEST}


def test_a_gap_is_refused(store):
    store.append(DIGEST, 0, b"abc")
    for offset in (0, 2, 4):
        with pytest.raises(DeviceError, match="has 3 bytes"):
            store.append(DIGEST, offset, b"x")


@pytest.mark.parametrize(
    ("data", "size", "why"),
    [
        (DATA[:-1], len(DATA), "6999 bytes where 7000 were due"),
        (DATA + b"x", len(DATA), "7001 bytes where 7000 were due"),
        (b"?" + DATA[1:], len(DATA), "wrong digest"),
        (DATA, len(DATA) - 1, "7000 bytes where 6999 were due"),
    ],
)
def test_bytes_that_are_not_the_piece_are_thrown_away(store, tmp_path, data, size, why):
    store.append(DIGEST, 0, data)
    with pytest.raises(PieceDigestError, match=why):
        store.complete(DIGEST, size)
    assert names(tmp_path) == set()


def test_completing_nothing_is_a_digest_error(store):
    with pytest.raises(PieceDigestError, match="none of its bytes"):
        store.complete(DIGEST, 1)


def test_reading_what_is_not_there(store):
    with pytest.raises(DeviceError, match="cannot read"):
        store.read(DIGEST)


@pytest.mark.parametrize("name", ["", "../x", "A" * 64, "a" * 63, "a" * 64 + "\n", "/etc/passwd"])
def test_a_name_that_is_no_digest_never_reaches_the_disk(store, name):
    for call in (store.has, store.read, store.partial_size, store.discard):
        with pytest.raises(DeviceError, match="is not the digest"):
            call(name)
    with pytest.raises(DeviceError, match="is not the digest"):
        store.append(name, 0, b"x")


def test_a_link_in_place_of_a_piece_is_not_followed(store, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "pieces" / f"{DIGEST}.part").symlink_to(victim)
    size = store.partial_size(DIGEST)
    with pytest.raises(DeviceError):
        store.append(DIGEST, size, b"x")
    assert victim.read_bytes() == b"mine"


def test_keep_only_and_discard_touch_nothing_else(store, tmp_path):
    other = hashlib.sha256(b"other").hexdigest()
    third = hashlib.sha256(b"third").hexdigest()
    for digest, data in ((DIGEST, DATA), (other, b"other")):
        store.append(digest, 0, data)
        store.complete(digest, len(data))
    store.append(third, 0, b"th")
    (tmp_path / "pieces" / "README").write_text("not ours")
    store.keep_only(frozenset({DIGEST}))
    assert names(tmp_path) == {DIGEST, "README"}
    store.discard(DIGEST)
    store.discard(DIGEST)
    assert names(tmp_path) == {"README"}


def test_a_full_disk_says_so_and_keeps_what_there_is(small_disk):
    store = FilePieceStore(small_disk / "pieces")
    store.append(DIGEST, 0, DATA)
    store.complete(DIGEST, len(DATA))
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(DiskFullError):
        store.append(other, 0, b"x" * 2_000_000)
    assert store.free_bytes() < 100_000
    assert store.read(DIGEST) == DATA
    held = store.partial_size(other)
    store.keep_only(frozenset({DIGEST}))
    assert held > 0
    assert store.free_bytes() > 800_000


@given(data=st.binary(min_size=1, max_size=500), cuts=st.lists(st.integers(0, 500)))
def test_any_cut_gives_the_piece_back(tmp_path_factory, data, cuts):
    store = FilePieceStore(tmp_path_factory.mktemp("pieces"))
    digest = hashlib.sha256(data).hexdigest()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in itertools.pairwise(edges):
        store.append(digest, start, data[start:end])
    store.complete(digest, len(data))
    assert store.read(digest) == data
