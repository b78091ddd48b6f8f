"""Memory is given back without harm: which pages may go, and a process that lives on after they went."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent.runtime.elf_segments import FileRange
from agent.runtime.resident import Span, give_back, unwritten_spans

PAGE = 4096
CODE = FileRange(0x1000, 0x5800)
LIBRARIES = {"/lib/a.so": [FileRange(0, 0x900), CODE]}


def entry(start, end, perms="r-xp", offset=0, path="/lib/a.so", **counts):
    sizes = {"Rss": 8, "Anonymous": 0, "Swap": 0, "Locked": 0, **counts}
    lines = [f"{start:x}-{end:x} {perms} {offset:08x} fe:00 1234      {path}\n"]
    lines += [f"{name}:     {size} kB\n" for name, size in sizes.items()]
    return [*lines, "VmFlags: rd ex mr mw me\n"]


def spans(lines):
    return list(unwritten_spans(lines, lambda path: LIBRARIES.get(path, ()), PAGE))


def test_whole_pages_of_code_may_go():
    """The last page, of which another segment may have a part, stays."""
    assert spans(entry(0x7000, 0xC000, offset=0x1000)) == [Span(0x7000, 0x4000)]


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(entry(0x7000, 0xC000, offset=0x1000, Anonymous=4), id="changed"),
        pytest.param(entry(0x7000, 0xC000, offset=0x1000, Swap=4), id="changed and swapped out"),
        pytest.param(entry(0x7000, 0xC000, offset=0x1000, Locked=4), id="locked"),
        pytest.param(entry(0x7000, 0xC000, offset=0x1000, Rss=0), id="not there"),
        pytest.param(entry(0x7000, 0xC000, "rw-p", 0x1000), id="writable"),
        pytest.param(entry(0x7000, 0xC000, "r-xs", 0x1000), id="shared"),
        pytest.param(entry(0x7000, 0xC000, offset=0x1000, path="/slots/w.bin"), id="weights"),
        pytest.param(entry(0x7000, 0xC000, offset=0x1000, path="[heap]"), id="no file"),
        pytest.param(entry(0x7000, 0xC000, offset=0x1000, path="/lib/a.so (deleted)"), id="gone"),
        pytest.param(entry(0x7000, 0xA000, "r--p", 0x6000), id="made read-only by the linker"),
        pytest.param(entry(0x7000, 0x8000, "r--p", 0x5000), id="shared with the next segment"),
        pytest.param(entry(0x6000, 0xE000, "r--p", 0), id="being loaded: all segments in one"),
    ],
)
def test_nothing_else_may_go(lines):
    assert spans(lines) == []


def test_each_mapping_is_judged_by_itself():
    lines = [
        *entry(0x6000, 0x7000, "rw-p", Anonymous=4),
        *entry(0x7000, 0xC000, offset=0x1000),
        *entry(0xD000, 0xF000, "r--p", 0x6000, Anonymous=8),
        *entry(0x17000, 0x19000, offset=0x2000),
    ]
    assert spans(lines) == [Span(0x7000, 0x4000), Span(0x17000, 0x2000)]


LIVES_ON = """
import gc, importlib, json, sqlite3, ssl, sys, threading
from agent.runtime.resident import give_back

first = give_back()
done = threading.Event()
failed = []

def load_libraries():
    try:
        for name in ("_decimal", "_lzma", "_bz2", "_curses", "readline", "grpc", "google._upb._message"):
            importlib.import_module(name)
            ssl.create_default_context()
            assert sqlite3.connect(":memory:").execute("select 6 * 7").fetchone() == (42,)
    except BaseException as error:
        failed.append(repr(error))
    finally:
        done.set()

thread = threading.Thread(target=load_libraries)
thread.start()
rounds = 0
while not done.is_set() and rounds < 1000:
    give_back()
    rounds += 1
thread.join()
give_back()
import decimal
assert decimal.Decimal("1.1") + decimal.Decimal("2.2") == decimal.Decimal("3.3")
print(json.dumps([first and [first.own_bytes, first.mapped_bytes], rounds, failed]))
"""


def test_a_process_lives_on_while_libraries_are_loaded():
    done = subprocess.run(
        [sys.executable, "-c", LIVES_ON], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    freed, rounds, failed = json.loads(done.stdout)
    assert not failed
    assert rounds >= 1
    if Path("/proc/self/smaps").exists():
        assert freed[1] > 500_000


def test_a_system_that_has_none_of_this_is_no_error(monkeypatch):
    nowhere = Path("/nowhere")
    monkeypatch.setattr("agent.runtime.resident._SMAPS", nowhere)
    monkeypatch.setattr("agent.runtime.resident._STATM", nowhere)
    monkeypatch.setattr("agent.runtime.resident.ctypes.CDLL", lambda _name: object())
    assert give_back() is None
