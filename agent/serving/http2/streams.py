"""The states of a stream (RFC 9113, section 5.1) as one table.

Only clients open streams here. Where this side has ended a stream before the peer did, it resets it as well (RFC 9113,
section 8.1), so there is no state of waiting for a peer whose words nobody wants any more.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from agent.serving.http2.errors import ErrorCode
from agent.serving.http2.flow import ReceiveWindow, SendWindow

__all__ = ["TRANSITIONS", "Broken", "Came", "State", "Stream"]


class State(Enum):
    """Of one stream."""

    __hash__ = object.__hash__  # by identity, like equality: looked up with every frame
    IDLE = "not opened yet"
    OPEN = "the request is coming"
    ENDED = "the request is whole, the answer is not"
    CLOSED = "both are whole"
    RESET = "reset by us: what was under way is ignored"
    CANCELLED = "reset by the peer"


class Came(Enum):
    """What a peer sends on a stream. ``END`` is the flag, after the frame that carries it."""

    __hash__ = object.__hash__  # as above
    HEADERS = "HEADERS"
    DATA = "DATA"
    END = "END_STREAM"
    RST_STREAM = "RST_STREAM"
    WINDOW_UPDATE = "WINDOW_UPDATE"


class Broken(Enum):
    """What a peer may not send, by what it loses."""

    NEVER_OPENED = ErrorCode.PROTOCOL_ERROR, True
    IS_CLOSED = ErrorCode.STREAM_CLOSED, True
    IS_ENDED = ErrorCode.STREAM_CLOSED, False
    IGNORED = None, False
    """It could not know yet: nothing is lost."""


TRANSITIONS: Final[Mapping[tuple[State, Came], State | Broken]] = {
    (State.IDLE, Came.HEADERS): State.OPEN,
    (State.IDLE, Came.DATA): Broken.NEVER_OPENED,
    (State.IDLE, Came.RST_STREAM): Broken.NEVER_OPENED,
    (State.IDLE, Came.WINDOW_UPDATE): Broken.NEVER_OPENED,
    (State.OPEN, Came.HEADERS): State.OPEN,  # trailers; END has to follow
    (State.OPEN, Came.DATA): State.OPEN,
    (State.OPEN, Came.END): State.ENDED,
    (State.OPEN, Came.RST_STREAM): State.CANCELLED,
    (State.OPEN, Came.WINDOW_UPDATE): State.OPEN,
    (State.ENDED, Came.HEADERS): Broken.IS_ENDED,
    (State.ENDED, Came.DATA): Broken.IS_ENDED,
    (State.ENDED, Came.RST_STREAM): State.CANCELLED,
    (State.ENDED, Came.WINDOW_UPDATE): State.ENDED,
    (State.CLOSED, Came.HEADERS): Broken.IS_CLOSED,
    (State.CLOSED, Came.DATA): Broken.IS_CLOSED,
    (State.CLOSED, Came.RST_STREAM): Broken.IGNORED,
    (State.CLOSED, Came.WINDOW_UPDATE): Broken.IGNORED,
    (State.RESET, Came.HEADERS): Broken.IGNORED,
    (State.RESET, Came.DATA): Broken.IGNORED,
    (State.RESET, Came.RST_STREAM): Broken.IGNORED,
    (State.RESET, Came.WINDOW_UPDATE): Broken.IGNORED,
    (State.CANCELLED, Came.HEADERS): Broken.IS_ENDED,
    (State.CANCELLED, Came.DATA): Broken.IS_ENDED,
    (State.CANCELLED, Came.RST_STREAM): Broken.IGNORED,
    (State.CANCELLED, Came.WINDOW_UPDATE): Broken.IGNORED,
}


class Stream:
    """One stream that is open or whose answer is not sent. ``unsent`` is what waits for windows; ``trailers`` end it
    once that is empty."""

    __slots__ = ("expected", "id", "receive", "send", "state", "trailers", "unsent", "unsent_bytes")

    def __init__(self, stream_id: int, send: int, receive: int, expected: int | None) -> None:
        """``expected``: bytes of body that the request's head promises; None: it does not say."""
        self.id = stream_id
        self.state = State.OPEN
        self.send = SendWindow(send)
        self.receive = ReceiveWindow(receive)
        self.expected = expected
        self.unsent: list[memoryview] = []
        self.unsent_bytes = 0
        self.trailers: bytes | None = None
