"""The supervisor's threads share one heap. In a process of its own: the setting is for good."""

import subprocess
import sys

ALLOCATING = """
import ctypes, sys, threading
from agent.adapters.heap import share_one_heap

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
if sys.argv[1] == "shared":
    assert share_one_heap()
meet = threading.Barrier(5)

def allocate():
    libc.malloc(1000)
    meet.wait()

threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
meet.wait()
sys.stdout.flush()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def heaps(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATING, mode], capture_output=True, text=True, check=True
    )
    return done.stdout.count("<heap nr=")


def test_threads_share_one_heap() -> None:
    assert heaps("shared") == 1


def test_without_it_they_would_not() -> None:
    """So that the test above can fail."""
    assert heaps("as it comes") > 1
