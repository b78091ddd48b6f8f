"""Where the tests' temporary files lie: in memory, where the machine has a folder for that.

The tests wait for the disk tens of thousands of times, because everything they make is durable, and learn nothing from
it: no test cuts the power, and those of power cuts write down the order of the operations instead.
"""

import os
import tempfile
from pathlib import Path

__all__ = ["stay_in_memory"]

FOLDER = Path("/dev/shm")
ROOM_BYTES = 2**30


def stay_in_memory() -> None:
    """Temporary files of this process and those it starts go to memory, unless TMPDIR says where."""
    if "TMPDIR" in os.environ or not os.access(FOLDER, os.W_OK):
        return
    status = os.statvfs(FOLDER)
    if status.f_flag & os.ST_NOEXEC or status.f_bavail * status.f_frsize < ROOM_BYTES:
        return
    os.environ["TMPDIR"] = tempfile.tempdir = str(FOLDER)
