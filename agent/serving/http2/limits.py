"""Bounds of the HTTP/2 front end. All of it is memory or time that a peer could otherwise take.

Rules kept here:

- Frames that cost a peer nothing and us an answer are paid from an allowance that fills up again with time and with
  answered requests: a client that works is never short of it, a flood is soon.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.serving.placement import PlacementLimits
from agent.serving.service import MAX_STREAMS

__all__ = ["Allowance", "CallLimits", "FrontLimits", "Http2Limits"]


@dataclass(frozen=True, slots=True)
class Http2Limits:
    """Of one connection's protocol."""

    max_frame_bytes: int = 1 << 18
    """SETTINGS_MAX_FRAME_SIZE."""
    stream_window_bytes: int = 1 << 20
    """SETTINGS_INITIAL_WINDOW_SIZE."""
    connection_window_bytes: int = 8 << 20
    max_streams: int = 1024
    """SETTINGS_MAX_CONCURRENT_STREAMS; more are refused."""
    max_header_list_bytes: int = 16 << 10
    """SETTINGS_MAX_HEADER_LIST_SIZE: names and values, unpacked."""
    max_header_block_bytes: int = 8 << 10
    """The same, packed."""
    max_continuations: int = 8
    """Frames that one header block may be cut into, after the first."""
    remembered_heads: int = 64
    """Header blocks that are read once and then looked up."""
    remembered_resets: int = 256
    """Streams that were reset; frames that were under way to the oldest of them become errors."""
    max_settings: int = 32
    """In one SETTINGS frame."""
    max_control_bytes: int = 64 << 10
    """Acknowledgements and resets that wait because the peer does not read."""
    allowance: int = 1000
    """Frames without a use, at once: PING, SETTINGS, PRIORITY, RST_STREAM, empty DATA, unknown ones."""
    allowance_per_s: float = 100.0
    allowance_per_answer: int = 2


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Of the calls on all connections together."""

    max_message_bytes: int = 64 << 20
    """Of one request or answer."""
    max_bytes_together: int = 256 << 20
    """Of requests and unsent answers under way."""
    max_requests: int = 512
    """Under way; more are answered RESOURCE_EXHAUSTED at once."""
    max_streams: int = MAX_STREAMS
    """Calls of streaming methods."""
    max_waiting_messages: int = 16
    """Of one such call; its window stays shut until some are answered."""
    pool_threads: int = field(default_factory=lambda: max(2, os.cpu_count() or 1))
    """For what is too slow for the event loop."""
    max_read_inline_bytes: int = 1 << 16
    """Unusual requests beyond it are read by a thread of the pool."""
    placement: PlacementLimits = PlacementLimits()  # noqa: RUF009 (frozen)
    max_turn: int = 32
    """Requests run one after another before the other connections have their turn."""


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """Of the front end's connections; times of a peer that does nothing."""

    max_connections: int = 1024
    max_write_bytes: int = 1 << 18
    """Answers that wait in the transport; above it, answers wait in their streams, within ``max_bytes_together``."""
    handshake_s: float = 10.0
    """From the connection to its first SETTINGS."""
    request_s: float = 30.0
    """From one part of a request to the next."""
    stall_s: float = 30.0
    """A peer that does not read what it asked for."""
    idle_s: float = 3600.0
    """A connection without a call."""
    keepalive_s: float = 600.0
    """Silence after which the peer is asked whether it is still there."""
    keepalive_wait_s: float = 20.0
    """For its answer."""
    look_every_s: float = 1.0
    """How often connections are compared with these."""


class Allowance:
    """A bucket: ``spend`` takes one out and says whether there was one. ``clock``: monotonic seconds."""

    __slots__ = ("_at_s", "_clock", "_left", "_most", "_per_s")

    def __init__(self, most: float, per_s: float, clock: Callable[[], float]) -> None:
        self._most, self._per_s, self._clock = most, per_s, clock
        self._left = most
        self._at_s = clock()

    def spend(self) -> bool:
        """False: there is none left."""
        now_s = self._clock()
        self._left = min(self._most, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def give(self, count: float) -> None:
        """Something useful happened."""
        self._left = min(self._most, self._left + count)
