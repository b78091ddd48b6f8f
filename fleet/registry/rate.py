"""How often strangers may ask: a token bucket for all of them together and one for each address.

Rules kept here: the clock is monotonic and comes from outside; what is remembered of strangers is bounded, and who is
forgotten first is who asked longest ago.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["RateLimit"]

MAX_PEERS: Final = 4096


@dataclass(slots=True)
class _Bucket:
    left: float
    at_s: float

    def take(self, now_s: float, per_s: float, most: float) -> bool:
        self.left = min(most, self.left + (now_s - self.at_s) * per_s)
        self.at_s = now_s
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True


class RateLimit:
    """A minute's worth may come at once; after that they come evenly."""

    def __init__(
        self, per_minute: int, per_peer_per_minute: int, monotonic_s: Callable[[], float]
    ) -> None:
        self._all_per_minute = per_minute
        self._peer_per_minute = per_peer_per_minute
        self._monotonic_s = monotonic_s
        self._all = _Bucket(per_minute, monotonic_s())
        self._peers: OrderedDict[str, _Bucket] = OrderedDict()

    def allows(self, peer: str) -> bool:
        """Whether ``peer`` (an address) may ask now; if so, that was counted."""
        now_s = self._monotonic_s()
        bucket = self._peers.get(peer)
        if bucket is None:
            bucket = self._peers[peer] = _Bucket(self._peer_per_minute, now_s)
            if len(self._peers) > MAX_PEERS:
                self._peers.popitem(last=False)
        self._peers.move_to_end(peer)
        # The own limit first: who is over it does not use up what is there for the others.
        return bucket.take(now_s, self._peer_per_minute / 60, self._peer_per_minute) and (
            self._all.take(now_s, self._all_per_minute / 60, self._all_per_minute)
        )
