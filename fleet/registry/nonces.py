"""Numbers to be signed: each is good once, for one device, and not for long.

Rules kept here: bounded; the oldest goes first; a number that was asked for by one device proves nothing for another.
"""

import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

__all__ = ["Nonces"]

LIFE_S: Final = 60.0
MAX_NONCES: Final = 10_000
NONCE_BYTES: Final = 32


class Nonces:
    """In memory: after a restart of the fleet manager a device asks again."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._given: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def give(self, device_id: str) -> bytes:
        """A new number for this device."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._given[nonce] = (device_id, self._monotonic_s() + LIFE_S)
        if len(self._given) > MAX_NONCES:
            self._given.popitem(last=False)
        return nonce

    def take(self, device_id: str, nonce: bytes) -> bool:
        """Whether it was given to this device less than a minute ago; it is not good a second time."""
        owner, until_s = self._given.pop(nonce, ("", 0.0))
        return owner == device_id and self._monotonic_s() < until_s
