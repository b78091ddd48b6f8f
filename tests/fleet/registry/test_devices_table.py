"""The devices table: found page by page, heard of once and again."""

from pathlib import Path

import pytest

from fleet.errors import NotFoundError
from fleet.registry import Presence, Way, get_device, list_devices
from fleet.registry.devices import count_devices, register, set_all_offline, set_online
from fleet.store import open_store


def test_devices_are_registered_counted_and_listed(tmp_path: Path) -> None:
    store = open_store(tmp_path / "fleet.db")
    with store.begin() as connection:
        register(connection, ["b", "a", "b"], 1.0)
        register(connection, ["b", "c"], 2.0)
        register(connection, [], 3.0)
        set_online(connection, "b", True)
    with store.read() as connection:
        assert count_devices(connection) == (3, 1)
        assert [one["id"] for one in list_devices(connection, limit=2)] == ["a", "b"]
        assert [one["id"] for one in list_devices(connection, after="b")] == ["c"]
        found = get_device(connection, "b")
        assert (found["first_seen_s"], found["last_seen_s"], found["online"]) == (1.0, 2.0, True)
        with pytest.raises(NotFoundError, match="no device 'z' in this fleet"):
            get_device(connection, "z")
    with store.begin() as connection:
        set_all_offline(connection)
        assert count_devices(connection) == (3, 0)
    store.close()


def test_presence_tells_only_what_changes() -> None:
    presence = Presence()
    assert presence.changed("d", Way.MQTT, False) is None
    assert presence.changed("d", Way.MQTT, True) is True
    assert presence.changed("d", Way.MQTT, True) is None
    assert presence.changed("d", Way.GRPC, True) is None
    assert presence.changed("d", Way.MQTT, False) is None
    assert presence.online("d")
    assert presence.changed("d", Way.GRPC, False) is False
    assert not presence.online("d")
