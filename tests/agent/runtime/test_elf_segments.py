"""Which bytes of a library are never written to: from real libraries, made headers and rubbish."""

import _ctypes
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.runtime.elf_segments import HEAD_BYTES, FileRange, never_written

R, W, X = 4, 2, 1
ORDER = 1 if sys.byteorder == "little" else 2


def elf64(*segments, kind=1):
    """A header with such segments: (flags, offset, size)."""
    head = b"\x7fELF" + bytes([2, ORDER, 1]) + bytes(9)
    head += struct.pack("=HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    for flags, offset, size in segments:
        head += struct.pack("=IIQQQQQQ", kind, flags, offset, offset, offset, size, size, 4096)
    return head


def elf32(*segments):
    head = b"\x7fELF" + bytes([1, ORDER, 1]) + bytes(9)
    head += struct.pack("=HHIIIIIHHHHHH", 3, 40, 1, 0, 52, 0, 0, 52, 32, len(segments), 0, 0, 0)
    for flags, offset, size in segments:
        head += struct.pack("=IIIIIIII", 1, offset, offset, offset, size, size, flags, 4096)
    return head + bytes(64)


@pytest.mark.parametrize("made", [elf64, elf32])
def test_what_is_writable_is_left_out(made):
    head = made((R, 0, 100), (R | X, 4096, 5000), (R | W, 12288, 800))
    assert list(never_written(head)) == [FileRange(0, 100), FileRange(4096, 9096)]


def test_only_what_is_loaded_counts():
    assert list(never_written(elf64((R, 0, 100), kind=4))) == []


def test_a_real_library_has_code_and_its_data_is_left_out():
    path = Path(getattr(_ctypes, "__file__", sys.executable))  # built in where Python is one file
    found = never_written(path.read_bytes()[:HEAD_BYTES])
    assert found
    assert sum(it.end - it.start for it in found) < path.stat().st_size


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x7fELF",
        b"PK" + bytes(200),
        elf64((R, 0, 100))[:80],
        elf64((R, 0, 1)).replace(bytes([2, ORDER, 1]), bytes([2, 3 - ORDER, 1])),
        elf64((R, 0, 1)).replace(bytes([2, ORDER, 1]), bytes([7, ORDER, 1])),
    ],
)
def test_what_is_no_library_of_this_machine_has_none(head):
    assert list(never_written(head)) == []


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([1, 2]))
def test_rubbish_after_the_magic_never_raises(rest, size_class):
    for found in never_written(b"\x7fELF" + bytes([size_class, ORDER]) + rest):
        assert found.end >= found.start >= 0
