"""What counts as a hole: the rules to which every reader of bytes from outside is held, and how they are measured.

- What is refused is refused by an error of the package's own, whose text people and reports can carry: it has an end,
  and UTF-8 can hold it. Whatever else is raised is a hole.
- Memory is what Python allocates at most while the bytes are read (``tracemalloc``), against a bound that is said in
  advance: so much, and so many times the size of what came.
- Work is counted in executed instructions of Python's virtual machine, never in seconds: twice the input may take
  about twice of them.
"""

import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

__all__ = [
    "MESSAGE_CHARS",
    "Target",
    "check_accepted",
    "check_message",
    "instructions",
    "peak_bytes",
    "refusals",
]

MESSAGE_CHARS: Final = 4000


@dataclass(frozen=True, slots=True)
class Target:
    """A reader of bytes from outside.

    Attributes:
        name: for the command line and the records.
        seeds: valid inputs, from which others are made.
        feed: hands bytes to the reader as the agent or the fleet manager does. Raises where there is a hole.
    """

    name: str
    seeds: Sequence[bytes]
    feed: Callable[[bytes], object]


_nothing_is_refused: ContextVar[bool] = ContextVar("nothing_is_refused", default=False)


@contextmanager
def refusals(*kinds: type[Exception]) -> Iterator[None]:
    """Lets these errors end the block, if their text will do; any other comes out."""
    try:
        yield
    except kinds as error:
        if _nothing_is_refused.get():
            raise
        check_message(str(error))


def check_accepted(target: Target) -> None:
    """Raises the refusal where a seed is refused: then nothing but the first check would ever be reached."""
    before = _nothing_is_refused.set(True)
    try:
        for seed in target.seeds:
            target.feed(seed)
    finally:
        _nothing_is_refused.reset(before)


def check_message(text: str) -> None:
    """Raises AssertionError: the text of a refusal cannot be told."""
    assert 0 < len(text) <= MESSAGE_CHARS, f"a refusal in {len(text)} characters: {text[:200]}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AssertionError(f"a refusal that UTF-8 cannot hold: {text[:200]!r}") from error


def peak_bytes(work: Callable[[], object]) -> int:
    """What ``work`` allocates at most, beyond what there was before. What C libraries take is not seen."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def instructions(work: Callable[[], object]) -> int:
    """How many instructions of the virtual machine ``work`` takes. What runs in C counts as one."""
    count = 0

    def tracing(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return tracing

    before = sys.gettrace()
    sys.settrace(tracing)
    try:
        work()
    finally:
        sys.settrace(before)
    return count
