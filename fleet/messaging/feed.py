"""The newest metadata pack, for whoever has to hand it on.

Rules kept here: only the newest counts, so nothing queues up behind a slow reader; used from the
event loop's thread only.
"""

import asyncio

__all__ = ["PackFeed"]


class PackFeed:
    """One value and its version; readers wait for a newer one."""

    def __init__(self, pack: bytes = b"") -> None:
        self._pack = pack
        self._version = 1 if pack else 0
        self._changed = asyncio.Event()

    @property
    def version(self) -> int:
        """Counts the changes of this process's life; 0 while there is no pack."""
        return self._version

    @property
    def pack(self) -> bytes:
        """The newest pack; empty while there is none."""
        return self._pack

    def set(self, pack: bytes) -> bool:
        """Make ``pack`` the newest; whether that changed anything."""
        if pack == self._pack:
            return False
        self._pack = pack
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()
        return True

    async def newer(self, version: int) -> tuple[int, bytes]:
        """The newest version and pack, as soon as it is newer than ``version``."""
        while self._version <= version:
            await self._changed.wait()
        return self._version, self._pack
