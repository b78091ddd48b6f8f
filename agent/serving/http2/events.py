"""What a connection says has happened."""

from typing import NamedTuple, Protocol

__all__ = ["DataCame", "Event", "Head", "RequestCame", "StreamGone"]


class Head(Protocol):
    """What a request's user makes of its fields."""

    @property
    def length(self) -> int | None:
        """Bytes of body that it promises."""
        ...


class RequestCame(NamedTuple):
    """A stream was opened. ``head`` is what the connection's ``read`` made of its fields."""

    stream_id: int
    head: object
    ended: bool


class DataCame(NamedTuple):
    """A part of a request's body; its window opens again by ``Connection.consumed``."""

    stream_id: int
    data: bytes
    ended: bool


class StreamGone(NamedTuple):
    """Nobody waits for this stream's answer any more."""

    stream_id: int


Event = RequestCame | DataCame | StreamGone
