"""Bring the missing pieces of a bundle onto the device.

Rules kept here:
- Only pieces that were asked for are taken, in order, without gaps, and never more bytes than the
  manifest says. A piece counts once its digest is verified and it is durable.
- A broken stream resumes at the byte where it broke. A damaged piece is thrown away and fetched
  again, a bounded number of times.
- Attempts that bring bytes are free; attempts in a row that bring none are bounded and back off
  with jitter, so a fleet does not come back in step.
- Nothing is fetched before there is room for it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agent.bundle import Piece
from agent.delivery.backoff import backoff_s
from agent.delivery.errors import (
    DiskFullError,
    FetchStalledError,
    PieceDamagedError,
    PieceDigestError,
    PieceStreamError,
)
from agent.delivery.offload import Offload, run_to_end
from agent.errors import LinkError
from agent.ports import Clock, PieceChunk, PieceRange, PieceSource, PieceStore

__all__ = ["FetchLimits", "FetchPorts", "FetchProgress", "PieceFetch", "check_space"]


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bounds of one fetch."""

    batch_pieces: int = 64
    """Pieces asked for in one stream."""
    max_idle_attempts: int = 5
    """Attempts in a row without one new byte before giving up for now."""
    max_damaged: int = 3
    """How often one piece may arrive damaged."""
    stall_s: float = 60.0
    """A stream that brings nothing for so long is broken off."""
    retry_base_s: float = 1.0
    retry_max_s: float = 60.0
    reserve_bytes: int = 64 * 1024 * 1024
    """Disk space that a fetch must leave free."""


@dataclass(frozen=True, slots=True)
class FetchPorts:
    """What a fetch needs of the world. ``uniform`` gives numbers from 0 to 1 for the jitter."""

    source: PieceSource
    pieces: PieceStore
    clock: Clock
    offload: Offload
    uniform: Callable[[], float]


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """``bytes_fetched``: over the network in this fetch. Pieces held before count as done."""

    pieces_done: int
    pieces_total: int
    bytes_fetched: int


def check_space(where: str, needed_bytes: int, free_bytes: int, reserve_bytes: int) -> None:
    """Raises DiskFullError when ``needed_bytes`` would leave less than the reserve."""
    if free_bytes < needed_bytes + reserve_bytes:
        raise DiskFullError(where, needed_bytes + reserve_bytes, free_bytes)


class PieceFetch:
    """One fetch of the pieces of one bundle. Cancelling ``run`` keeps what arrived."""

    def __init__(
        self,
        wanted: Sequence[Piece],
        ports: FetchPorts,
        limits: FetchLimits,
        on_progress: Callable[[FetchProgress], None] | None = None,
    ) -> None:
        self._wanted = tuple(wanted)
        self._ports = ports
        self._limits = limits
        self._on_progress = on_progress
        self._received = 0
        self._damaged: dict[str, int] = {}
        self._missing = {piece.sha256: piece for piece in self._wanted}

    @property
    def bytes_fetched(self) -> int:
        return self._received

    async def run(self) -> None:
        """Return once every piece is held.

        Raises:
            FetchStalledError: bounded attempts in a row brought nothing; what arrived is kept.
            PieceDamagedError: a piece arrived damaged too often.
            DeviceError: the disk is full or failed.
        """
        await self._drop_held()
        idle = 0
        last: LinkError | None = None
        while self._missing:
            before = self._received
            try:
                await self._attempt(list(self._missing.values())[: self._limits.batch_pieces])
                last = None
            except PieceDamagedError:
                raise
            except (
                LinkError
            ) as error:  # the network's fault: what arrived is kept, go on from there
                last = error
            if self._received > before and last is None:
                idle = 0
                continue
            idle = 0 if self._received > before else idle + 1
            if idle >= self._limits.max_idle_attempts:
                raise FetchStalledError(idle, len(self._missing), last)
            await self._ports.clock.sleep(
                backoff_s(
                    max(idle, 1),
                    self._limits.retry_base_s,
                    self._limits.retry_max_s,
                    self._ports.uniform(),
                )
            )

    async def _drop_held(self) -> None:
        pieces = self._ports.pieces
        for piece in self._wanted:
            if pieces.has(piece.sha256):
                self._done(piece)
            elif pieces.partial_size(piece.sha256) >= piece.size:
                await self._complete(piece)  # every byte was there when the power went

    async def _attempt(self, batch: Sequence[Piece]) -> None:
        """One stream, given up when it brings nothing for ``stall_s``."""
        reader = asyncio.ensure_future(self._read(batch))
        try:
            while not reader.done():
                seen = self._received
                pause = asyncio.ensure_future(self._ports.clock.sleep(self._limits.stall_s))
                await asyncio.wait({reader, pause}, return_when=asyncio.FIRST_COMPLETED)
                pause.cancel()
                if not reader.done() and self._received == seen:
                    raise PieceStreamError(f"nothing came for {self._limits.stall_s:g} s")
            await reader
        finally:
            if not reader.done():
                reader.cancel()
                await asyncio.wait({reader})

    async def _read(self, batch: Sequence[Piece]) -> None:
        asked = {piece.sha256: piece for piece in batch}
        ranges = [
            PieceRange(piece.sha256, self._ports.pieces.partial_size(piece.sha256))
            for piece in batch
        ]
        async with _closing(self._ports.source.fetch(ranges)) as chunks:
            async for chunk in chunks:
                piece = asked.get(chunk.sha256)
                if piece is None or piece.sha256 not in self._missing:
                    raise PieceStreamError(f"it sent piece {chunk.sha256[:12]!r}, not asked for")
                await self._take(piece, chunk)

    async def _take(self, piece: Piece, chunk: PieceChunk) -> None:
        held = self._ports.pieces.partial_size(piece.sha256)
        end = chunk.offset + len(chunk.data)
        if chunk.offset != held or not chunk.data:
            raise PieceStreamError(
                f"piece {piece.sha256[:12]} went on at byte {chunk.offset} with "
                f"{len(chunk.data)} bytes where byte {held} was due"
            )
        if end > piece.size:
            self._ports.pieces.discard(piece.sha256)
            self._count_damage(piece)
            raise PieceStreamError(f"piece {piece.sha256[:12]} is longer than {piece.size} bytes")
        self._ports.pieces.append(piece.sha256, chunk.offset, chunk.data)
        self._received += len(chunk.data)
        if end == piece.size:
            await self._complete(piece)

    async def _complete(self, piece: Piece) -> None:
        try:
            await run_to_end(
                self._ports.offload, self._ports.pieces.complete, piece.sha256, piece.size
            )
        except PieceDigestError:
            # The store has thrown it away, so it is fetched again from its first byte.
            self._count_damage(piece)
            return
        self._done(piece)

    def _count_damage(self, piece: Piece) -> None:
        times = self._damaged.get(piece.sha256, 0) + 1
        self._damaged[piece.sha256] = times
        if times >= self._limits.max_damaged:
            raise PieceDamagedError(piece.sha256, times)

    def _done(self, piece: Piece) -> None:
        self._missing.pop(piece.sha256, None)
        if self._on_progress is not None:
            total = len(self._wanted)
            self._on_progress(FetchProgress(total - len(self._missing), total, self._received))


@asynccontextmanager
async def _closing(chunks: AsyncIterator[PieceChunk]) -> AsyncIterator[AsyncIterator[PieceChunk]]:
    """Close the stream whichever way it is left, where it can be closed."""
    try:
        yield chunks
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
