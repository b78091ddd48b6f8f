"""The filter of system calls, run by a machine of twenty lines: what the kernel would answer, on both architectures."""

import errno
import struct
from collections.abc import Sequence

import pytest

from agent.runtime.calls import LAST_KNOWN, NUMBERS, refused_to_server, refused_to_trial
from agent.runtime.seccomp import ARCHITECTURES, assemble

PID = 4711
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
REFUSED, ABSENT = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
SHARED_ANONYMOUS, PRIVATE_ANONYMOUS, SHARED_FILE = 0x21, 0x22, 0x01


def answer(program: bytes, audit: int, number: int, arguments: Sequence[int] = ()) -> int:
    """What the program returns for one call."""
    data = struct.pack("<iIQ6Q", number, audit, 0, *arguments, *([0] * (6 - len(arguments))))
    at = accumulator = 0
    while True:
        code, yes, no, value = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                at += yes if accumulator == value else no
            case 0x25:
                at += yes if accumulator > value else no
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"no operation {code:#x}")


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize(
    ("call", "arguments", "to_trial", "to_server"),
    [
        ("execve", (), REFUSED, REFUSED),
        ("clone", (0x00010F00,), ALLOW, ALLOW),
        ("clone", (0x11,), REFUSED, REFUSED),
        ("clone3", (), ABSENT, ABSENT),
        ("kill", (PID, 9), ALLOW, ALLOW),
        ("kill", (1, 9), REFUSED, REFUSED),
        ("kill", (-1 & 0xFFFFFFFFFFFFFFFF, 9), REFUSED, REFUSED),
        ("tgkill", (PID, 5, 6), ALLOW, ALLOW),
        ("tgkill", (1, 1, 6), REFUSED, REFUSED),
        ("prlimit64", (0, 0), ALLOW, ALLOW),
        ("prlimit64", (1, 0), REFUSED, REFUSED),
        ("setpriority", (0, 0, 19), ALLOW, ALLOW),
        ("setpriority", (0, 1, 19), REFUSED, REFUSED),
        ("setpriority", (2, 0, 19), REFUSED, REFUSED),
        ("fcntl", (3, 1), ALLOW, ALLOW),
        ("fcntl", (3, 8), REFUSED, REFUSED),
        ("fcntl", (3, 10), REFUSED, REFUSED),
        ("fcntl", (3, 15), REFUSED, REFUSED),
        ("mmap", (0, 4096, 3, PRIVATE_ANONYMOUS), ALLOW, ALLOW),
        ("mmap", (0, 4096, 1, SHARED_FILE), ALLOW, ALLOW),
        ("mmap", (0, 4096, 3, SHARED_ANONYMOUS), REFUSED, ALLOW),
        ("socket", (2, 0x80801), REFUSED, ALLOW),
        ("socket", (2, 2), REFUSED, REFUSED),
        ("socket", (16, 1), REFUSED, REFUSED),
        ("connect", (), REFUSED, REFUSED),
        ("accept4", (), REFUSED, ALLOW),
        ("sendto", (3, 0, 1, 0x20000000), REFUSED, REFUSED),
        ("sendto", (3, 0, 1, 0x4000), REFUSED, ALLOW),
        ("truncate", (), REFUSED, REFUSED),
        ("fchmodat", (), REFUSED, REFUSED),
    ],
)
def test_each_call_is_answered_as_listed(
    machine: str, call: str, arguments: Sequence[int], to_trial: int, to_server: int
) -> None:
    architecture = ARCHITECTURES[machine]
    number = NUMBERS[call][architecture.column]
    assert number is not None
    trial = assemble(refused_to_trial(PID), architecture)
    server = assemble(refused_to_server(PID), architecture)
    assert answer(trial, architecture.audit, number, arguments) == to_trial
    assert answer(server, architecture.audit, number, arguments) == to_server


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_every_other_call_is_allowed_and_every_later_one_absent(machine: str) -> None:
    architecture = ARCHITECTURES[machine]
    program = assemble(refused_to_trial(PID), architecture)
    listed = {row[architecture.column] for row in NUMBERS.values()}
    for number in range(LAST_KNOWN + 1):
        if number not in listed:
            assert answer(program, architecture.audit, number) == ALLOW
    for number in (LAST_KNOWN + 1, 9999, 0x40000000 + 59, 0xFFFFFFFF - (1 << 31)):
        assert answer(program, architecture.audit, number) == ABSENT


def test_a_call_of_another_architecture_kills() -> None:
    """A 32-bit call: its 11 is execve, which would be munmap here."""
    program = assemble(refused_to_trial(PID), ARCHITECTURES["x86_64"])
    assert answer(program, 0x40000003, 11) == KILL


def test_no_number_is_listed_twice() -> None:
    for column in (0, 1):
        numbers = [row[column] for row in NUMBERS.values() if row[column] is not None]
        assert len(set(numbers)) == len(numbers)


def test_the_filter_is_small_enough_for_the_kernel() -> None:
    for architecture in ARCHITECTURES.values():
        for refused in (refused_to_trial(PID), refused_to_server(PID)):
            assert len(assemble(refused, architecture)) // 8 < 4096
