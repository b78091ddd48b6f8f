"""Marks of what runs: written through shared memory, read after the writer was killed."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from agent.runtime import run_marks
from agent.runtime.child import child_environment

A, B = "a" * 64, "b" * 64


@pytest.fixture
def file():
    descriptor = run_marks.make_file()
    yield descriptor
    os.close(descriptor)


def test_what_runs_is_suspect_until_it_ends(file):
    marks = run_marks.RunMarks(file)
    assert run_marks.read_suspects(file) == ()
    first = marks.begin(bytes.fromhex(A))
    second = marks.begin(bytes.fromhex(B))
    third = marks.begin(bytes.fromhex(A))
    assert set(run_marks.read_suspects(file)) == {A, B}
    marks.end(first)
    assert set(run_marks.read_suspects(file)) == {A, B}
    marks.end(third)
    assert run_marks.read_suspects(file) == (B,)
    marks.end(second)
    assert run_marks.read_suspects(file) == ()


def test_a_stuck_run_is_the_only_suspect(file):
    marks = run_marks.RunMarks(file)
    other = threading.Thread(target=lambda: marks.begin(bytes.fromhex(A)))
    other.start()
    other.join()
    marks.begin(bytes.fromhex(B))
    marks.blame(threading.get_ident())
    assert run_marks.read_suspects(file) == (B,)


def test_more_runs_than_places_only_go_unmarked(file):
    marks = run_marks.RunMarks(file)
    places = [marks.begin(bytes.fromhex(A)) for _ in range(1000)]
    assert None in places
    for place in places:
        marks.end(place)
    assert run_marks.read_suspects(file) == ()
    assert marks.begin(bytes.fromhex(A)) is not None


def test_a_cleared_file_is_as_good_as_new(file):
    run_marks.RunMarks(file).begin(bytes.fromhex(A))
    run_marks.clear_file(file)
    assert run_marks.read_suspects(file) == ()


@pytest.mark.parametrize("raw", [b"", b"x", b"\xff" * run_marks.FILE_BYTES, b"Current thread 0xzz"])
def test_what_a_broken_process_left_behind_is_read_without_harm(file, raw):
    os.ftruncate(file, 0)
    os.pwrite(file, raw, 0)
    assert all(len(digest) == 64 for digest in run_marks.read_suspects(file))
    assert run_marks.read_suspects(-1) == ()


def test_without_a_file_nothing_is_marked():
    assert run_marks.begin(A) is None
    run_marks.end(None)


TWO_THREADS = f"""
import os, signal, sys, threading
from agent.runtime import run_marks
run_marks.install(int(sys.argv[1]))
started = threading.Event()
def other():
    run_marks.begin("{A}")
    started.set()
    threading.Event().wait()
threading.Thread(target=other, daemon=True).start()
started.wait()
run_marks.begin("{B}")
signal.pthread_kill(threading.get_ident(), getattr(signal, sys.argv[2]))
threading.Event().wait()
"""


@pytest.mark.parametrize(
    ("name", "suspects"),
    [("SIGSEGV", {B}), ("SIGABRT", {B}), ("SIGKILL", {A, B})],
)
def test_of_two_runs_the_one_whose_thread_was_struck_is_blamed(file, name, suspects):
    done = subprocess.run(
        [sys.executable, "-c", TWO_THREADS, str(file), name],
        pass_fds=(file,),
        env=child_environment(),
        timeout=90,
        check=False,
    )
    assert done.returncode == -getattr(signal, name)
    assert set(run_marks.read_suspects(file)) == suspects
