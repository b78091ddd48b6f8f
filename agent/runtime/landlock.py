"""Takes files away from this process for good: a Landlock ruleset (Linux 5.13 and later), by the system calls.

Rules kept here:

- Whatever is not granted is refused: reading, listing, writing, making, removing, running programs.
- From ABI 4 on no TCP connection is made, from ABI 6 on no signal reaches a process outside, nor an abstract socket.
- It holds for the calling thread and what it starts later, so it comes before the first thread.
- A path that is not there is granted nothing. Nothing is assumed: ``restrict_files`` returns the ABI in force, 0 where
  the kernel has none, and then nothing was restricted.
"""

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Grants", "landlock_abi", "restrict_files"]

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # alike on every architecture
_ASK_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_PATH_RULE: Final = struct.Struct("=Qi")

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_FILE, _MAKE_SOCKET = 1 << 5, 1 << 8, 1 << 9
_TRUNCATE, _DEVICE_CONTROL = 1 << 14, 1 << 15
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _DEVICE_CONTROL
_READ: Final = _READ_FILE | _READ_DIR
_KEEP_IN: Final = _READ | _WRITE_FILE | _MAKE_FILE | _REMOVE_FILE | _TRUNCATE
_USE_DEVICE: Final = _READ | _WRITE_FILE | _DEVICE_CONTROL

_RIGHTS_OF_ABI: Final = ((5, 16), (3, 15), (2, 14), (1, 13))
"""(from this ABI on, how many of the rights to files the kernel knows)"""
_NETWORK_ABI, _SCOPE_ABI = 4, 6
_BIND_TCP, _CONNECT_TCP = 1, 2
_ABSTRACT_SOCKET_AND_SIGNAL: Final = 3


@dataclass(frozen=True, slots=True)
class Grants:
    """What may still be done. Folders are meant with all that is in them."""

    read: tuple[Path, ...] = ()
    list_only: tuple[Path, ...] = ()
    """Folders whose names may be listed."""
    keep_in: tuple[Path, ...] = ()
    """Folders where files may be made, written and removed."""
    devices: tuple[Path, ...] = ()
    """Read, write and control."""
    make_sockets: tuple[Path, ...] = ()
    """Folders where a unix socket may be made."""
    bind_tcp: bool = False

    def rules(self) -> Iterable[tuple[Path, int]]:
        """Paths with the rights they get."""
        for paths, rights in (
            (self.read, _READ),
            (self.list_only, _READ_DIR),
            (self.keep_in, _KEEP_IN),
            (self.devices, _USE_DEVICE),
            (self.make_sockets, _MAKE_SOCKET),
        ):
            for path in paths:
                yield path, rights


def landlock_abi() -> int:
    """Which version of Landlock this kernel enforces; 0: none."""
    return max(0, _call(_CREATE_RULESET, 0, 0, _ASK_VERSION))


def restrict_files(grants: Grants) -> int:
    """Keep this thread, and those it starts, to what is granted; needs ``no_new_privs``. Returns the ABI; 0: none."""
    abi = landlock_abi()
    if abi < 1:
        return 0
    known = next(1 << count for least, count in _RIGHTS_OF_ABI if abi >= least) - 1
    network = 0 if abi < _NETWORK_ABI else _CONNECT_TCP | (0 if grants.bind_tcp else _BIND_TCP)
    parts = [known, network, _ABSTRACT_SOCKET_AND_SIGNAL][
        : 1 + (abi >= _NETWORK_ABI) + (abi >= _SCOPE_ABI)
    ]
    attribute = ctypes.create_string_buffer(struct.pack(f"={len(parts)}Q", *parts))
    ruleset = _call(_CREATE_RULESET, ctypes.addressof(attribute), 8 * len(parts), 0)
    if ruleset < 0:
        return 0
    try:
        for path, rights in grants.rules():
            with contextlib.suppress(OSError):  # not there, or not for us: nothing is granted
                _grant(ruleset, path, rights & known)
        return abi if _call(_RESTRICT_SELF, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


def _grant(ruleset: int, path: Path, rights: int) -> None:
    """Raises OSError: the path cannot be opened."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        rule = ctypes.create_string_buffer(_PATH_RULE.pack(rights, place))
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.addressof(rule), 0)
    finally:
        os.close(place)


def _call(number: int, *arguments: int) -> int:
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    return int(call(*(ctypes.c_long(value) for value in (number, *arguments))))
