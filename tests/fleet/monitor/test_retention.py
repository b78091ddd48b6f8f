"""Old reports go, a page at a time; what is still looked at stays."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Table, insert, select, text

from fleet.errors import ServerError
from fleet.monitor.ingest import Ingest
from fleet.monitor.record import record
from fleet.monitor.reports import parse_report
from fleet.monitor.retention import Pruned, Pruner, Retention, prune_windows
from fleet.store import Store, open_store
from fleet.store.tables import deployment_events, rollouts, windows
from fleet.store.writer import Writer
from protos import report_pb2
from tests.support.reports import START_MS, batch, event, window

DAY_S = 86_400.0
NOW_S = 1000 * DAY_S
OLD_S = NOW_S - 400 * DAY_S


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "fleet.db")
    yield opened
    opened.close()


@pytest.fixture
def writer(store: Store) -> Iterator[Writer]:
    made = Writer(store)
    yield made
    made.close()


def pruner(writer: Writer, **changes: float) -> Pruner:
    return Pruner(writer, Retention(**{"pause_s": 0.0, **changes}), lambda: NOW_S)  # type: ignore[arg-type]


def put(store: Store, received_s: float, *reports: report_pb2.Report) -> None:
    with store.begin() as connection:
        record(connection, [parse_report(one, one.device_id) for one in reports], received_s)


def kept(store: Store, table: Table = windows) -> list[tuple[str, int]]:
    with store.read() as connection:
        query = select(table.c.device_id, table.c.seq).order_by(table.c.device_id, table.c.seq)
        return [tuple(row) for row in connection.execute(query)]


def add_rollout(store: Store, state: str, *, stage_started_s: float = NOW_S) -> None:
    row = {
        "id": "r1", "number": 1, "model": "digits", "bundle": "bundles/edge/digits-1.0.0",
        "manifest_sha256": "ab" * 32, "spec": {}, "state": state, "stage": 0,
        "stage_started_s": stage_started_s, "created_s": OLD_S, "updated_s": OLD_S,
    }  # fmt: skip
    with store.begin() as connection:
        connection.execute(insert(rollouts), row)


def ended(seq: int, device: str = "d1", **fields: object) -> report_pb2.Report:
    """A window that ended later the higher its number is."""
    return window(device, seq, end_unix_ms=START_MS + 60_000 * seq, **fields)


async def test_what_is_too_old_goes_and_the_rest_stays(store: Store, writer: Writer) -> None:
    put(store, NOW_S - 31 * DAY_S, ended(1), event(seq=2))
    put(store, NOW_S - 29 * DAY_S, ended(3))
    put(store, NOW_S - 366 * DAY_S, event("d2", 1))
    assert await pruner(writer).prune() == Pruned(windows=1, events=1, pages=2, evidence=2)
    assert kept(store) == [("d1", 3)]
    assert kept(store, deployment_events) == [("d1", 2)]
    assert await pruner(writer).prune() == Pruned(pages=2)


async def test_the_newest_window_of_each_device_stays(store: Store, writer: Writer) -> None:
    put(store, OLD_S, ended(1), ended(2), ended(1, "d2"), ended(7, "d2"), ended(4, "d3"))
    await pruner(writer).prune()
    assert kept(store) == [("d1", 2), ("d2", 7), ("d3", 4)]


@pytest.mark.parametrize("state", ["running", "paused"])
async def test_a_rollout_under_way_keeps_its_reports(
    store: Store, writer: Writer, state: str
) -> None:
    add_rollout(store, state)
    put(store, OLD_S, ended(1), ended(2), ended(3, rollout_id="r0"), ended(4), event(seq=5))
    put(store, OLD_S, event(seq=6, rollout_id="r0"))
    await pruner(writer).prune()
    assert kept(store) == [("d1", 1), ("d1", 2), ("d1", 4)]
    assert kept(store, deployment_events) == [("d1", 5)]


@pytest.mark.parametrize("state", ["promoted", "rolled_back", "aborted"])
async def test_a_final_rollout_keeps_nothing(store: Store, writer: Writer, state: str) -> None:
    add_rollout(store, state)
    put(store, OLD_S, ended(1), ended(2), event(seq=3))
    await pruner(writer).prune()
    assert kept(store) == [("d1", 2)]
    assert kept(store, deployment_events) == []


async def test_the_control_arm_of_a_long_stage_stays(store: Store, writer: Writer) -> None:
    add_rollout(store, "running", stage_started_s=OLD_S)
    put(store, OLD_S - 1, ended(1, rollout_id="r0"))
    put(store, OLD_S + 1, ended(2, rollout_id="r0"), ended(3, rollout_id="r0", model="faces"))
    put(store, OLD_S + 2, ended(4, rollout_id="r0"))
    await pruner(writer).prune()
    assert kept(store) == [("d1", 2), ("d1", 4)]


@pytest.mark.parametrize("page_rows", [1, 2, 3, 7, 100])
async def test_pages_of_any_size_end_the_same(store: Store, writer: Writer, page_rows: int) -> None:
    add_rollout(store, "running")
    for turn in range(4):  # several of one moment, with some between them that stay
        six = [ended(10 * turn + n, f"d{n % 3}", rollout_id=f"r{n % 2}") for n in range(6)]
        put(store, OLD_S + turn // 2, *six)
    before = kept(store)
    pruned = await pruner(writer, page_rows=page_rows).prune()
    left = kept(store)
    # Of 24 windows the 12 of r1 stay, and the newest of each device that is not one of them.
    newest = {(f"d{n % 3}", 30 + n) for n in range(3, 6) if n % 2 == 0}
    assert set(left) == {key for key in before if key[1] % 2} | newest
    assert pruned.windows == len(before) - len(left)
    assert pruned.pages == len(before) // page_rows + 2


async def test_reports_are_taken_in_between_two_pages(store: Store, writer: Writer) -> None:
    put(store, OLD_S, *(ended(seq) for seq in range(1, 61)))
    ingest = Ingest(writer)
    intake = asyncio.create_task(ingest.run())
    pruning = asyncio.create_task(pruner(writer, page_rows=1).prune())
    await ingest.submit("d2", batch(window("d2")))
    assert not pruning.done()
    assert (await pruning).windows == 59
    assert ("d2", 1) in kept(store)
    intake.cancel()


async def test_an_error_is_told_and_tried_again(
    store: Store, writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, OLD_S, ended(1), ended(2))
    calls = 0
    tried_again = asyncio.Event()

    class FailingOnce(Writer):
        def __init__(self) -> None:
            pass

        async def run(self, work):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls == 1:
                raise ServerError("the disk is full")
            result = await writer.run(work)
            tried_again.set()
            return result

    task = asyncio.create_task(pruner(FailingOnce(), every_s=0.0).run())
    async with asyncio.timeout(60):
        await tried_again.wait()
    task.cancel()
    assert "old reports were not deleted: the disk is full" in caplog.text
    assert kept(store) == [("d1", 2)]


def test_a_page_is_found_by_an_index(store: Store) -> None:
    with store.begin() as connection:
        seen: list[str] = []
        original = connection.execute

        def explained(statement, *rest):  # type: ignore[no-untyped-def]
            sql = str(statement.compile(connection, compile_kwargs={"literal_binds": True}))
            if "windows" in sql:
                plan = original(text(f"EXPLAIN QUERY PLAN {sql}")).all()
                seen.extend(row[3] for row in plan)
            return original(statement, *rest)

        connection.execute = explained  # type: ignore[method-assign]
        prune_windows(connection, NOW_S, (1.0, "d1", "b1", 1), 10)
    assert any("windows_by_arrival" in line for line in seen)
    assert not any(line.startswith("SCAN windows") for line in seen)
