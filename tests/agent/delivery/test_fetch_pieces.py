"""Fetching into real files: resume, damage, hostile sources, and a device that loses its power."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from agent.adapters.piece_store import FilePieceStore
from agent.bundle import Piece
from agent.delivery import (
    DiskFullError,
    FetchLimits,
    FetchPorts,
    FetchStalledError,
    PieceDamagedError,
    PieceFetch,
    check_space,
    run_inline,
    run_to_end,
)
from agent.errors import DeviceError, LinkError
from agent.ports import PieceChunk, PieceRange

CONTENTS = [bytes([n]) * (1000 + n) for n in range(10)]
BY_DIGEST = {hashlib.sha256(data).hexdigest(): data for data in CONTENTS}
WANTED = [Piece(digest, len(data)) for digest, data in BY_DIGEST.items()]
LIMITS = FetchLimits(batch_pieces=4)


class Clock:
    """Time passes at once, except for the pause that watches for a stall."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now_s(self) -> float:
        return 0.0

    def monotonic_s(self) -> float:
        return 0.0

    def utc_offset_minutes(self) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        if seconds == LIMITS.stall_s:
            await asyncio.Event().wait()
        self.slept.append(seconds)


Script = Callable[[Sequence[PieceRange]], AsyncIterator[PieceChunk]]


class Source:
    """Plays one script a stream, then serves faithfully."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.asked: list[list[PieceRange]] = []

    def fetch(self, ranges: Sequence[PieceRange]) -> AsyncIterator[PieceChunk]:
        self.asked.append(list(ranges))
        return (self.scripts.pop(0) if self.scripts else faithful)(ranges)


async def faithful(ranges: Sequence[PieceRange], chunk: int = 300) -> AsyncIterator[PieceChunk]:
    for wanted in ranges:
        data = BY_DIGEST[wanted.sha256]
        for offset in range(wanted.offset, len(data), chunk):
            yield PieceChunk(wanted.sha256, offset, data[offset : offset + chunk])


def breaking(after: int) -> Script:
    async def script(ranges: Sequence[PieceRange]) -> AsyncIterator[PieceChunk]:
        left = after
        async for chunk in faithful(ranges):
            if left == 0:
                raise LinkError("the stream broke")
            left -= 1
            yield chunk

    return script


def sending(make: Callable[[PieceRange], list[PieceChunk]]) -> Script:
    async def script(ranges: Sequence[PieceRange]) -> AsyncIterator[PieceChunk]:
        for wanted in ranges:
            for chunk in make(wanted):
                yield chunk

    return script


@pytest.fixture
def store(tmp_path) -> FilePieceStore:
    return FilePieceStore(tmp_path / "pieces")


def fetch_of(store, source, limits=LIMITS, on_progress=None) -> tuple[PieceFetch, Clock]:
    clock = Clock()
    ports = FetchPorts(source, store, clock, run_inline, lambda: 0.5)
    return PieceFetch(WANTED, ports, limits, on_progress), clock


def assert_whole(store) -> None:
    for digest, data in BY_DIGEST.items():
        assert store.read(digest) == data


async def test_everything_arrives_in_batches(store):
    source, seen = Source(), []
    fetch, clock = fetch_of(store, source, on_progress=seen.append)
    await fetch.run()
    assert_whole(store)
    assert [len(ranges) for ranges in source.asked] == [4, 4, 2]
    assert seen[-1].pieces_done == seen[-1].pieces_total == 10
    assert seen[-1].bytes_fetched == fetch.bytes_fetched == sum(map(len, CONTENTS))
    assert clock.slept == []


async def test_what_is_held_is_not_asked_for(store):
    await fetch_of(store, Source())[0].run()
    source = Source()
    fetch, _ = fetch_of(store, source)
    await fetch.run()
    assert source.asked == []
    assert fetch.bytes_fetched == 0


@pytest.mark.parametrize("after", range(1, 12))
async def test_a_broken_stream_costs_no_byte_twice(store, after):
    fetch, _ = fetch_of(store, Source(breaking(after), breaking(after)))
    await fetch.run()
    assert_whole(store)
    assert fetch.bytes_fetched == sum(map(len, CONTENTS))


async def test_a_new_process_goes_on_at_the_byte_where_the_old_one_stopped(store, tmp_path):
    fetch, _ = fetch_of(store, Source(breaking(2)), FetchLimits(max_idle_attempts=1))
    fetch._ports.source.scripts.append(breaking(0))
    with pytest.raises(FetchStalledError):
        await fetch.run()
    source = Source()
    again, _ = fetch_of(FilePieceStore(tmp_path / "pieces"), source)
    await again.run()
    assert source.asked[0][0] == PieceRange(WANTED[0].sha256, 600)
    assert again.bytes_fetched == sum(map(len, CONTENTS)) - 600


async def test_a_piece_whose_bytes_were_all_there_at_the_power_cut_needs_no_network(store):
    first = WANTED[0]
    store.append(first.sha256, 0, BY_DIGEST[first.sha256])
    fetch, _ = fetch_of(store, Source())
    await fetch.run()
    assert fetch.bytes_fetched == sum(map(len, CONTENTS)) - first.size


async def test_a_partial_piece_that_was_garbled_is_thrown_away_and_fetched_whole(store):
    first = WANTED[0]
    store.append(first.sha256, 0, b"?" * 500)
    fetch, _ = fetch_of(store, Source())
    await fetch.run()
    assert_whole(store)


async def test_a_piece_that_is_always_damaged_is_given_up(store):
    bad = sending(lambda r: [PieceChunk(r.sha256, 0, b"?" * len(BY_DIGEST[r.sha256]))])
    source = Source(*[bad] * 10)
    with pytest.raises(PieceDamagedError, match="3 times"):
        await fetch_of(store, source)[0].run()
    assert not any(store.has(piece.sha256) for piece in WANTED)
    assert len(source.asked) == LIMITS.max_damaged


@pytest.mark.parametrize(
    "make",
    [
        lambda r: [PieceChunk("f" * 64, 0, b"x")],
        lambda r: [PieceChunk("../../etc/passwd", 0, b"x")],
        lambda r: [PieceChunk(r.sha256, r.offset + 1, b"x")],
        lambda r: [PieceChunk(r.sha256, r.offset, b"")],
        lambda r: [PieceChunk(r.sha256, r.offset, b"x" * 100_000)],
        lambda r: [],
    ],
    ids=["not-asked-for", "a-path", "a-gap", "empty", "endless", "nothing"],
)
async def test_a_hostile_stream_is_left_and_a_good_one_finishes(store, tmp_path, make):
    await fetch_of(store, Source(sending(make)))[0].run()
    assert_whole(store)
    assert {p.name for p in (tmp_path / "pieces").iterdir()} == set(BY_DIGEST)


async def test_a_source_that_only_ever_sends_nonsense_is_bounded(store):
    bad = sending(lambda r: [PieceChunk(r.sha256, r.offset + 1, b"x")])
    source = Source(*[bad] * 100)
    with pytest.raises(FetchStalledError, match="10 pieces are missing"):
        await fetch_of(store, source)[0].run()
    assert len(source.asked) == LIMITS.max_idle_attempts


async def test_one_byte_and_then_too_many_is_bounded(store):
    bad = sending(
        lambda r: [PieceChunk(r.sha256, r.offset, b"x"), PieceChunk(r.sha256, 1, b"x" * 9999)]
    )
    source = Source(*[bad] * 100)
    with pytest.raises(PieceDamagedError):
        await fetch_of(store, source)[0].run()
    assert len(source.asked) <= LIMITS.max_damaged


async def test_a_stream_that_stalls_is_given_up(store):
    async def hang(ranges):
        await asyncio.Event().wait()
        yield

    class StallClock(Clock):
        async def sleep(self, seconds: float) -> None:
            self.slept.append(seconds)

    clock = StallClock()
    ports = FetchPorts(Source(hang), store, clock, run_inline, lambda: 0.5)
    limits = FetchLimits(max_idle_attempts=1, stall_s=7.0)
    with pytest.raises(FetchStalledError, match="nothing came for 7 s"):
        await PieceFetch(WANTED, ports, limits).run()


async def test_a_disk_error_ends_the_fetch(store):
    def fail(*args):
        raise DiskFullError("pieces", None, None)

    store.append = fail
    with pytest.raises(DeviceError, match="no room on the disk"):
        await fetch_of(store, Source())[0].run()


async def test_pauses_back_off_and_progress_ends_them(store):
    fetch, clock = fetch_of(store, Source(*[breaking(0)] * 3, breaking(1), breaking(0)))
    await fetch.run()
    assert clock.slept == [0.75, 1.5, 3.0, 0.75, 0.75]


def test_space_is_asked_for_before_the_fetch():
    check_space("x", 10, 30, 20)
    with pytest.raises(DiskFullError, match="30 bytes are needed, 29 are free; free some space"):
        check_space("bundle b", 10, 29, 20)


async def test_a_cancelled_wait_lasts_until_the_thread_has_ended():
    loop, began, may_end, ended = asyncio.get_running_loop(), asyncio.Event(), [], []

    async def offload(work):
        began.set()
        future = loop.create_future()
        may_end.append(future)
        await future
        ended.append(True)

    task = asyncio.ensure_future(run_to_end(offload, lambda: None))
    await began.wait()
    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    may_end[0].set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
