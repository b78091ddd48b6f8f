"""The service manager hears what it asked for, and its absence is no failure."""

import os
import socket

import pytest

from agent.adapters.systemd import Notifier


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(60)
        yield sock


def notifier(path, **more):
    return Notifier({"NOTIFY_SOCKET": str(path), **more})


def test_messages(manager, tmp_path):
    told = notifier(tmp_path / "notify")
    told.ready("serving\nnothing")
    told.status("all well")
    told.alive()
    told.stopping()
    heard = [manager.recv(4096).decode() for _ in range(4)]
    assert heard == [
        "READY=1\nSTATUS=serving nothing",
        "STATUS=all well",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


def test_an_abstract_socket():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"muster-test-notify-{os.getpid()}"
        sock.bind(f"\0{name}")
        sock.settimeout(60)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).alive()
        assert sock.recv(100) == b"WATCHDOG=1"


def test_the_watchdog_is_fed_twice_as_often_as_asked(tmp_path):
    assert notifier(tmp_path, WATCHDOG_USEC="60000000").watchdog_s == 30
    assert (
        notifier(tmp_path, WATCHDOG_USEC="60000000", WATCHDOG_PID=str(os.getpid())).watchdog_s == 30
    )
    assert notifier(tmp_path, WATCHDOG_USEC="60000000", WATCHDOG_PID="1").watchdog_s == 0
    assert notifier(tmp_path, WATCHDOG_USEC="nonsense").watchdog_s == 0


def test_children_do_not_inherit_the_socket():
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "OTHER": "stays"}
    Notifier(environment)
    assert environment == {"OTHER": "stays"}


def test_nobody_listening_is_no_failure(tmp_path):
    Notifier({}).ready("x")
    notifier(tmp_path / "gone").ready("x")
