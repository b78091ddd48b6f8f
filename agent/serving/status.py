"""gRPC's status codes, and which one each fault has. Both gRPC front ends answer by this table."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from agent.serving.errors import MalformedMessageError
from agent.serving.protocol import Fault, fault_of

__all__ = ["CODES", "Code", "status_of"]


class Code(IntEnum):
    """The codes that are answered, by gRPC's numbers."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


CODES: Final[Mapping[Fault, Code]] = {
    Fault.NOT_FOUND: Code.NOT_FOUND,
    Fault.UNAVAILABLE: Code.UNAVAILABLE,
    Fault.INVALID_ARGUMENT: Code.INVALID_ARGUMENT,
    Fault.DEADLINE_EXCEEDED: Code.DEADLINE_EXCEEDED,
    Fault.PERMISSION_DENIED: Code.PERMISSION_DENIED,
    Fault.RESOURCE_EXHAUSTED: Code.RESOURCE_EXHAUSTED,
    Fault.INTERNAL: Code.INTERNAL,
}


def status_of(error: Exception, model: str) -> tuple[Code, str]:
    """Code and text that a call ends with when ``error`` came of it."""
    if isinstance(error, MalformedMessageError):
        return Code.INTERNAL, str(error)
    fault, text = fault_of(error, model)
    return CODES[fault], text
