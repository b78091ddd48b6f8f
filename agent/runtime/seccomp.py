"""Takes system calls away from this process for good: a seccomp filter, assembled here. Linux on x86_64 and aarch64.

Rules kept here:

- ``assemble`` is a pure function from calls and checks to the kernel's filter program; ``refuse_calls`` loads it for
  every thread of the process at once.
- A call of another architecture than the filter was made for kills the process: its numbers mean other calls.
- Nothing is assumed: ``refuse_calls`` says whether the kernel took the filter.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from agent.runtime.calls import LAST_KNOWN, NUMBERS, Check

__all__ = ["ARCHITECTURES", "Architecture", "assemble", "refuse_calls"]

_LOAD, _EQUAL, _GREATER, _AND, _RETURN = 0x20, 0x15, 0x25, 0x54, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_ERRNO: Final = 0x00050000
_ALL_BITS: Final = 0xFFFFFFFF
_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_INSTRUCTION: Final = struct.Struct("=HBBI")
_ABSENT: Final = "clone3"
"""Answers ENOSYS and not EPERM, so that the C library takes the older call."""

Instruction = tuple[int, int, int, int]
"""Operation, jump when true, jump when false, value."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """``column`` in ``calls.NUMBERS``; ``audit``: what the kernel calls it; ``seccomp``: the number of that call."""

    column: int
    audit: int
    seccomp: int


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "x86_64": Architecture(0, 0xC000003E, 317),
    "aarch64": Architecture(1, 0xC00000B7, 277),
}


def assemble(refused: Mapping[str, tuple[Check, ...]], architecture: Architecture) -> bytes:
    """The filter: ``struct sock_filter`` after ``struct sock_filter`` (8 bytes each)."""
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_GREATER, 0, 1, LAST_KNOWN),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for name in sorted({*refused, _ABSENT}):
        number = NUMBERS[name][architecture.column]
        if number is None:
            continue
        body = list(_body(name, refused.get(name, ())))
        program += [(_EQUAL, 0, len(body), number), *body]
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def _body(name: str, checks: tuple[Check, ...]) -> Iterator[Instruction]:
    """What decides about one call; always returns."""
    refusal = _ERRNO | (errno.ENOSYS if name == _ABSENT else errno.EPERM)
    if not checks:
        yield (_RETURN, 0, 0, refusal)
        return
    for check in checks:
        yield (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * check.index)  # little-endian: the low half first
        if check.mask != _ALL_BITS:
            yield (_AND, 0, 0, check.mask)
        for left, value in zip(range(len(check.values), 0, -1), check.values, strict=True):
            # A value leads to the refusal behind the last of them, or past it; so does having found none.
            if check.refuses:
                yield (_EQUAL, left - 1, int(left == 1), value)
            else:
                yield (_EQUAL, left, 0, value)
        yield (_RETURN, 0, 0, refusal)
    yield (_RETURN, 0, 0, _ALLOW)


def refuse_calls(refused: Mapping[str, tuple[Check, ...]]) -> bool:
    """Load the filter for all threads; needs ``no_new_privs``. Returns whether the kernel took it."""
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None:
        return False
    program = assemble(refused, architecture)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: how many instructions, and where they are
    header = ctypes.create_string_buffer(
        struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(code))
    )
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    arguments = (architecture.seccomp, _SET_MODE_FILTER, _ALL_THREADS)
    return bool(call(*(ctypes.c_long(number) for number in arguments), header) == 0)
