"""The durable write: whole, or as before."""

import os
import stat

import pytest

from agent.adapters.durable import disk_errors, free_bytes, make_folder, write_durable
from agent.delivery import DiskFullError
from agent.errors import DeviceError


def test_it_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "file"
    write_durable(path, b"one")
    write_durable(path, b"two", mode=0o644)
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_it_is_private_unless_asked(tmp_path):
    write_durable(tmp_path / "file", b"")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_the_calls_are_in_the_order_that_makes_it_durable(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def spy(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        calls.append(f"fsync {kind}")
        fsync(descriptor)

    def rename(source, target, **_):
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(os, "replace", rename)
    write_durable(tmp_path / "file", b"x")
    assert calls == ["fsync file", "rename", "fsync folder"]


def test_it_does_not_write_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / ".file.tmp").symlink_to(victim)
    with pytest.raises(DeviceError, match="cannot write"):
        write_durable(tmp_path / "file", b"x")
    assert victim.read_bytes() == b"mine"


def test_a_missing_folder_is_a_device_error_that_says_what_to_do(tmp_path):
    with pytest.raises(DeviceError, match="No such file or directory; check the disk"):
        write_durable(tmp_path / "no" / "file", b"x")


def test_a_full_disk_keeps_the_old_content(small_disk):
    path = small_disk / "file"
    write_durable(path, b"old")
    with pytest.raises(DiskFullError, match=r"no room on the disk of .*file; free some space"):
        write_durable(path, b"x" * 2_000_000)
    assert path.read_bytes() == b"old"
    assert [p.name for p in small_disk.iterdir()] == ["file"]


def test_free_bytes_and_folders(tmp_path):
    assert free_bytes(make_folder(tmp_path / "a" / "b")) > 0
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceError):
        make_folder(tmp_path / "file" / "x")


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), disk_errors("read", None):
        raise ZeroDivisionError
