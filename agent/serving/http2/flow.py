"""Flow control windows (RFC 9113, section 5.2).

Rules kept here:

- A peer that sends more than it may has broken the protocol.
- What was consumed is given back in large steps: a window update for each frame would cost more than the frame.
"""

from agent.serving.http2.frames import MAX_WINDOW

__all__ = ["ReceiveWindow", "SendWindow"]


class ReceiveWindow:
    """What a peer may still send, in bytes."""

    __slots__ = ("_owed", "_size", "left")

    def __init__(self, size: int) -> None:
        self._size = size
        self._owed = 0
        self.left = size

    def take(self, size: int) -> bool:
        """So much came. False: more than allowed."""
        self.left -= size
        return self.left >= 0

    def consumed(self, size: int) -> int:
        """So much is dealt with. The increment to tell the peer now, mostly 0."""
        self._owed += size
        if self._owed * 2 < self._size:
            return 0
        increment, self._owed = self._owed, 0
        self.left += increment
        return increment


class SendWindow:
    """What may still be sent, in bytes; may be negative after a change of settings."""

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = size

    def grow(self, increment: int) -> bool:
        """The peer takes more, or less. False: beyond what a window can be."""
        self.left += increment
        return self.left <= MAX_WINDOW
