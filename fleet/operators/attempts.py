"""How often somebody may try in vain: token buckets, for each address and over all. Pure: time comes in.

Rules kept here: time is monotonic, in seconds; the number of addresses remembered has a limit, and of those the ones
that were heard from longest ago are forgotten; addresses of one IPv6 network count as one.
"""

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

__all__ = ["Allowance", "Attempts", "Budget", "network_of"]

MAX_ADDRESSES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Allowance:
    """``burst`` at once, then one every ``every_s``."""

    burst: int
    every_s: float


class _Bucket:
    __slots__ = ("at_s", "left")

    def __init__(self, left: float, at_s: float) -> None:
        self.left, self.at_s = left, at_s

    def wait_s(self, allowance: Allowance, now_s: float) -> float:
        """Seconds until there is one left; fills up on the way."""
        gained = max(0.0, now_s - self.at_s) / allowance.every_s
        self.left, self.at_s = min(float(allowance.burst), self.left + gained), now_s
        return 0.0 if self.left >= 1 else (1 - self.left) * allowance.every_s


class Budget:
    """What may be done so often and no more; counts what was left out."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._bucket = _Bucket(allowance.burst, 0.0)
        self.left_out = 0

    def take(self, now_s: float) -> bool:
        """Whether it may be done now; if not, one more is left out."""
        if self._bucket.wait_s(self._allowance, now_s) > 0:
            self.left_out += 1
            return False
        self._bucket.left -= 1
        return True


class Attempts:
    """Counts what failed."""

    def __init__(self, each: Allowance, together: Allowance) -> None:
        self._each, self._together = each, together
        self._all = _Bucket(together.burst, 0.0)
        self._by_network: OrderedDict[str, _Bucket] = OrderedDict()

    def wait_s(self, address: str, now_s: float) -> float:
        """Seconds this address has to wait before it may try again; 0: it may."""
        bucket = self._by_network.get(network_of(address))
        own_s = 0.0 if bucket is None else bucket.wait_s(self._each, now_s)
        return max(own_s, self._all.wait_s(self._together, now_s))

    def failed(self, address: str, now_s: float) -> None:
        """It tried in vain."""
        network = network_of(address)
        bucket = self._by_network.setdefault(network, _Bucket(self._each.burst, now_s))
        self._by_network.move_to_end(network)
        while len(self._by_network) > MAX_ADDRESSES:
            self._by_network.popitem(last=False)
        for one, allowance in ((bucket, self._each), (self._all, self._together)):
            one.wait_s(allowance, now_s)
            one.left = max(0.0, one.left - 1)


def network_of(address: str) -> str:
    """The /64 of an IPv6 address, which one customer has whole; any other address as it is."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
