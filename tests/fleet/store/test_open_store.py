"""Opening, migrating and refusing databases."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, insert, select, text

from fleet.errors import ConfigError, ServerError
from fleet.store import migrations, open_store
from fleet.store.migrate import newest_revision
from fleet.store.tables import devices, metadata, windows
from fleet.store.writer import Writer

ROW = {"id": "d1", "first_seen_s": 1.0, "last_seen_s": 1.0}


def test_migrations_make_exactly_the_tables(tmp_path: Path) -> None:
    store = open_store(tmp_path / "fleet.db")
    with store.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    store.close()


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return config


def go_back(connection: Connection, revision: str) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    command.downgrade(config, revision)


def test_migrations_are_named_after_their_revisions_in_their_order() -> None:
    walked = [*ScriptDirectory.from_config(alembic_config()).walk_revisions()][::-1]
    folder = Path(migrations.__file__).parent / "versions"
    files = sorted(path.name for path in folder.glob("v*.py"))
    assert [Path(one.path).name for one in walked] == files
    assert [one.revision for one in walked] == [name[1:5] for name in files]
    assert newest_revision() == walked[-1].revision


def test_a_database_that_is_up_to_date_is_opened_without_alembic(tmp_path: Path) -> None:
    open_store(tmp_path / "fleet.db").close()
    check = (
        "import sys; from pathlib import Path; from fleet.store import open_store\n"
        "open_store(Path(sys.argv[1])).close(); print('alembic' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check, str(tmp_path / "fleet.db")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False"]


def test_rows_stored_before_there_was_more_have_none_of_it(tmp_path: Path) -> None:
    store = open_store(tmp_path / "fleet.db")
    names = ("feedback_count", "feedback_correct", "feedback_abs_error_sum", "feedback_unknown")
    later = ("role", "shadow_compared", "confidence_count", "output_counts", "counters")
    with store.begin() as connection:
        go_back(connection, "0002")
        connection.execute(
            text(
                "INSERT INTO devices (id, device_class, hardware, labels, agent_version, onnxruntime_version, "
                "memory_bytes, disk_free_bytes, cpu_count, operating_system, boot_id, online, first_seen_s, "
                "last_seen_s, inventory_ms) VALUES ('d1', '', '', '{}', '', '', 0, 0, 0, '', '', 0, 1, 1, 0)"
            )
        )
        connection.execute(
            text(
                "INSERT INTO windows (device_id, boot_id, seq, model, version, manifest_sha256, rollout_id, start_ms, "
                "end_ms, requests, failures, over_objective, input_violations, output_violations, non_finite, "
                "error_kinds, latency, rss_bytes, cpu_percent, disk_free_bytes, merged, received_s) VALUES "
                "('d1', 'b1', 1, 'm', '1', '', '', 0, 1, 5, 0, 0, 0, 0, 0, '{}', x'', 0, 0, 0, 1, 1.0)"
            )
        )
    store.close()
    store = open_store(tmp_path / "fleet.db")
    with store.read() as connection:
        [row] = connection.execute(select(windows)).mappings()
    assert [row[name] for name in names] == [0, 0, 0.0, 0]
    assert (row["notices"], row["requests"]) == ([], 5)
    assert [row[name] for name in later] == ["", 0, 0, {}, {}]
    with store.read() as connection:
        [device] = connection.execute(select(devices)).mappings()
    assert (device["execution_provider"], device["on_battery"]) == ("", False)
    assert device["battery_percent"] is None
    store.close()


def test_opening_again_keeps_the_rows(tmp_path: Path) -> None:
    store = open_store(tmp_path / "fleet.db")
    with store.begin() as connection:
        connection.execute(insert(devices), ROW)
    store.close()
    store = open_store(f"sqlite:///{tmp_path / 'fleet.db'}")
    with store.read() as connection:
        assert connection.execute(select(devices.c.id)).scalars().all() == ["d1"]
    store.close()


def test_every_connection_is_durable(tmp_path: Path) -> None:
    store = open_store(tmp_path / "fleet.db")
    with store.read() as one, store.begin() as two:
        for connection in (one, two):
            assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
            assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    store.close()


def test_an_error_takes_the_change_back(tmp_path: Path) -> None:
    store = open_store(tmp_path / "fleet.db")

    def fail_halfway() -> None:
        with store.begin() as connection:
            connection.execute(insert(devices), ROW)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_halfway()
    with store.read() as connection:
        assert connection.execute(select(devices.c.id)).all() == []
    store.close()


def test_a_reader_sees_one_state_and_never_waits_for_a_writer(tmp_path: Path) -> None:
    store = open_store(tmp_path / "fleet.db")
    with store.read() as reader:
        assert reader.execute(select(devices.c.id)).all() == []
        with store.begin() as writer:
            writer.execute(insert(devices), ROW)
        assert reader.execute(select(devices.c.id)).all() == []
    store.close()


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    store = open_store(tmp_path / "fleet.db")

    def add(number: int) -> None:
        for turn in range(20):
            with store.begin() as connection:
                connection.execute(select(devices.c.id)).all()
                connection.execute(insert(devices), {**ROW, "id": f"d{number}-{turn}"})

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as connection:
        assert len(connection.execute(select(devices.c.id)).all()) == 80
    store.close()


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path / "fleet.db")
    with store.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(ConfigError, match=r"revision '9999'.*newer one wrote it.*Upgrade Muster"):
        open_store(tmp_path / "fleet.db")
    assert newest_revision() == "0009"


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "what is this"])
def test_urls_that_name_no_database_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="database url"):
        open_store(url)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(ConfigError, match="cannot be opened: file is not a database"):
        open_store(path)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unable to open database file"):
        open_store(tmp_path / "missing" / "fleet.db")


async def test_the_writer_commits_and_reports_what_the_database_refuses(tmp_path: Path) -> None:
    store = open_store(tmp_path / "fleet.db")
    writer = Writer(store)
    await writer.run(lambda connection: connection.execute(insert(devices), ROW))
    with pytest.raises(ServerError, match="database refused"):
        await writer.run(lambda connection: connection.execute(insert(devices), ROW))
    writer.close()
    with store.read() as connection:
        assert len(connection.execute(select(devices.c.id)).all()) == 1
    store.close()
