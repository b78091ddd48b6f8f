"""From a batch to the tables: idempotent, in order, acknowledged after the commit."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from fleet.errors import ServerError
from fleet.monitor.history import last_events, last_windows, latest_steps, quantile_s
from fleet.monitor.ingest import Ingest, IngestLimits
from fleet.monitor.record import Recorded, record
from fleet.monitor.reports import parse_report
from fleet.registry import Way, get_device, models_of
from fleet.store import Store, open_store
from fleet.store.tables import deployment_events, deployments, devices, windows
from fleet.store.writer import Writer
from protos import report_pb2
from tests.support.reports import START_MS, batch, event, inventory, window


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "fleet.db")
    yield opened
    opened.close()


def put(store: Store, *reports: report_pb2.Report, now_s: float = 100.0) -> Recorded:
    with store.begin() as connection:
        parsed = [parse_report(one, one.device_id) for one in reports]
        return record(connection, parsed, now_s)


def rows(store: Store, table: Any) -> list[dict[str, Any]]:
    with store.read() as connection:
        return [row._asdict() for row in connection.execute(select(table))]


def step(store: Store) -> tuple[str, str, float | None]:
    (row,) = rows(store, deployments)
    return row["phase"], row["outcome"], row["committed_s"]


def test_the_same_reports_twice_change_nothing(store: Store) -> None:
    reports = [window(seq=1), event(seq=2), inventory(seq=3)]
    assert put(store, *reports) == Recorded(windows=1, events=1, inventories=1)
    before = [rows(store, table) for table in (windows, deployment_events, deployments)]
    again = put(store, *reports[:2], now_s=200.0)
    assert again == Recorded(repeated=2)
    after = [rows(store, table) for table in (windows, deployment_events, deployments)]
    assert before == after
    with store.read() as connection:
        device = get_device(connection, "d1")
    assert (device["first_seen_s"], device["last_seen_s"]) == (100.0, 200.0)


def test_a_report_twice_in_one_batch_is_stored_once(store: Store) -> None:
    assert put(store, window(), window()) == Recorded(windows=1, repeated=1)


def test_reports_of_one_number_from_two_boots_are_two(store: Store) -> None:
    put(store, window(boot="b1"), window(boot="b2"))
    assert len(rows(store, windows)) == 2


def test_the_newest_step_moves_forward_within_a_boot_whatever_the_clock_says(store: Store) -> None:
    put(store, event(seq=1, phase="fetch", at_ms=START_MS))
    put(store, event(seq=2, phase="try", at_ms=START_MS - 86_400_000))  # the clock was set back
    assert step(store)[0] == "try"
    put(store, event(seq=1, phase="fetch", at_ms=START_MS))  # comes again
    assert step(store)[0] == "try"


def test_steps_of_one_batch_end_at_the_last(store: Store) -> None:
    put(
        store,
        event(seq=1, phase="fetch"),
        event(seq=2, phase="verify"),
        event(seq=3, phase="commit", outcome="committed"),
    )
    assert step(store) == ("commit", "committed", 100.0)


def test_an_older_boot_does_not_take_the_step_back(store: Store) -> None:
    put(store, event(boot="b2", seq=1, phase="probation", at_ms=START_MS + 1000))
    put(store, event(boot="b1", seq=9, phase="fetch", at_ms=START_MS))
    assert step(store)[0] == "probation"
    put(store, event(boot="b3", seq=1, phase="revert", outcome="reverted", at_ms=START_MS + 2000))
    assert step(store)[:2] == ("revert", "reverted")


def test_the_first_commit_is_remembered(store: Store) -> None:
    put(store, event(seq=1, phase="commit", outcome="committed"), now_s=100.0)
    put(store, event(seq=2, phase="commit", outcome="committed"), now_s=200.0)
    assert step(store)[2] == 100.0
    put(store, event(seq=3, phase="revert", outcome="reverted"), now_s=300.0)
    assert step(store) == ("revert", "reverted", 100.0)


def test_a_late_commit_counts_though_it_is_not_the_newest_step(store: Store) -> None:
    put(store, event(boot="b2", seq=1, phase="revert", outcome="reverted", at_ms=START_MS + 9))
    put(store, event(boot="b1", seq=1, phase="commit", outcome="committed", at_ms=START_MS))
    assert step(store) == ("revert", "reverted", 100.0)


def test_an_inventory_replaces_what_was_known(store: Store) -> None:
    put(store, inventory(seq=1))
    put(store, inventory(seq=2, labels={"site": "roof"}, active=[]))
    with store.read() as connection:
        assert get_device(connection, "d1")["labels"] == {"site": "roof"}
        assert models_of(connection, ["d1"]) == {"d1": []}


def test_an_older_inventory_of_the_same_boot_is_ignored(store: Store) -> None:
    put(store, inventory(seq=2, agent_version="2"))
    assert put(store, inventory(seq=1, agent_version="1")) == Recorded(repeated=1)
    with store.read() as connection:
        assert get_device(connection, "d1")["agent_version"] == "2"


def test_after_a_restart_with_a_wrong_clock_the_inventory_counts(store: Store) -> None:
    put(store, inventory(boot="b1", agent_version="1"))
    put(store, inventory(boot="b2", agent_version="2", at_ms=5))
    with store.read() as connection:
        assert get_device(connection, "d1")["agent_version"] == "2"


def test_history_for_people(store: Store) -> None:
    put(store, window(seq=1), event(seq=2, phase="fetch"), event(seq=3, phase="verify"))
    with store.read() as connection:
        assert [one["phase"] for one in last_events(connection, "d1", 10)] == ["verify", "fetch"]
        assert [one["phase"] for one in latest_steps(connection, "d1")] == ["verify"]
        (last,) = last_windows(connection, "d1", 10)
    assert last["latency_p50_ms"] == pytest.approx(1000 * 2 ** (-59 / 8), rel=1e-3)
    assert "latency" not in last


@pytest.mark.parametrize(
    ("histogram", "share", "expected"),
    [
        (report_pb2.Histogram(), 0.5, None),
        (report_pb2.Histogram(zero_count=3), 0.5, 0.0),
        (report_pb2.Histogram(scale=0, offset=0, counts=[1, 1]), 0.5, 2.0),
        (report_pb2.Histogram(scale=0, offset=0, counts=[1, 1]), 1.0, 4.0),
        (report_pb2.Histogram(scale=0, offset=0, counts=[1, 1], max=3.0), 1.0, 3.0),
        (report_pb2.Histogram(scale=-2000, offset=2**30, counts=[1]), 0.5, 2.0**1000),
    ],
)
def test_quantiles(histogram: report_pb2.Histogram, share: float, expected: float | None) -> None:
    assert quantile_s(histogram, share) == expected


# --- the queue --------------------------------------------------------------------------------------


@pytest.fixture
async def ingest(store: Store) -> AsyncIterator[Ingest]:
    writer = Writer(store)
    one = Ingest(writer, now_s=lambda: 50.0)
    task = asyncio.create_task(one.run())
    yield one
    task.cancel()
    await asyncio.wait({task})
    writer.close()


async def test_an_acknowledgement_names_what_is_committed(ingest: Ingest, store: Store) -> None:
    ack = await ingest.submit("d1", batch(window(seq=1), event(seq=2)))
    assert [(one.boot_id, one.seq) for one in ack.ids] == [("b1", 1), ("b1", 2)]
    assert len(rows(store, windows)) == 1
    assert (ingest.counters.windows, ingest.counters.events) == (1, 1)


async def test_a_malformed_report_is_counted_and_acknowledged_and_the_others_are_stored(
    ingest: Ingest, store: Store
) -> None:
    ack = await ingest.submit("d1", batch(window(seq=1, model=""), window(seq=2)))
    assert [one.seq for one in ack.ids] == [1, 2]  # or the device would send it for ever
    assert ingest.counters.refused == {"missing": 1}
    assert [row["seq"] for row in rows(store, windows)] == [2]


async def test_a_report_in_the_name_of_another_is_dropped_without_acknowledgement(
    ingest: Ingest, store: Store
) -> None:
    ack = await ingest.submit("d1", batch(window(device="d2", seq=1)))
    assert not ack.ids
    assert ingest.counters.refused == {"device_id": 1}
    assert rows(store, devices) == []


async def test_batches_that_wait_are_committed_together(store: Store) -> None:
    writer = Writer(store)
    one = Ingest(writer)
    waiting = [
        asyncio.create_task(one.submit(f"d{number}", batch(window(f"d{number}"))))
        for number in range(50)
    ]
    await asyncio.sleep(0)
    task = asyncio.create_task(one.run())
    await asyncio.gather(*waiting)
    assert one.counters.commits == 1
    assert len(rows(store, windows)) == 50
    task.cancel()
    writer.close()


async def test_who_brings_more_than_fits_waits(store: Store) -> None:
    writer = Writer(store)
    one = Ingest(writer, IngestLimits(queued_batches=2))
    waiting = [
        asyncio.create_task(one.submit("d1", batch(window(seq=number)))) for number in range(1, 11)
    ]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    task = asyncio.create_task(one.run())
    await asyncio.gather(*waiting)
    assert len(rows(store, windows)) == 10
    task.cancel()
    writer.close()


async def test_when_the_database_fails_nothing_is_acknowledged_and_the_intake_goes_on(
    ingest: Ingest, store: Store
) -> None:
    with store.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE windows RENAME TO gone")
    with pytest.raises(ServerError, match="no such table"):
        await ingest.submit("d1", batch(window()))
    with store.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE gone RENAME TO windows")
    assert len((await ingest.submit("d1", batch(window()))).ids) == 1
    assert ingest.counters.failed_commits == 1


async def test_a_device_is_online_while_one_way_is_up(ingest: Ingest, store: Store) -> None:
    async def after(way: Way, up: bool) -> bool:
        await ingest.present("d1", way, up)
        (row,) = rows(store, devices)
        return bool(row["online"])

    assert await after(Way.GRPC, True)
    assert await after(Way.MQTT, True)
    assert await after(Way.GRPC, False)
    assert not await after(Way.MQTT, False)
    await ingest.present("no/device", Way.MQTT, True)
    assert len(rows(store, devices)) == 1


def test_a_batch_from_thousands_of_devices_is_one_transaction(store: Store) -> None:
    reports = [window(f"d{number}") for number in range(5000)]
    assert put(store, *reports) == Recorded(windows=5000)
    assert len(rows(store, devices)) == 5000
