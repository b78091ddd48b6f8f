"""The body of an HTTP request, whole.

Rules kept here:

- Its size is known before it is read, or bounded while it is: one by one and over all requests.
- A caller that stops sending is given up.
- ``gzip`` and ``deflate`` are unpacked, to the same bound: a small body must not become a large one.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from agent.serving.errors import OverloadError, WireError

__all__ = ["Body", "BodyLimits", "read_body"]

_WINDOW_BITS: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bounds of what is held."""

    max_bytes: int = 64 << 20
    """Of one request, unpacked."""
    max_bytes_together: int = 256 << 20
    """Of all requests under way."""
    max_wait_s: float = 30.0
    """For the rest of a body."""


class Body:
    """What all bodies together hold. Belongs to one event loop."""

    def __init__(self, limits: BodyLimits) -> None:
        self.limits = limits
        self._held = 0

    def take(self, size_bytes: int) -> None:
        """Raises OverloadError when no more fits."""
        if self._held + size_bytes > self.limits.max_bytes_together:
            raise OverloadError(
                f"requests under way hold {self._held} bytes, {size_bytes} more do not fit; try again later"
            )
        self._held += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """A request has ended."""
        self._held -= size_bytes


async def read_body(
    headers: Iterable[tuple[bytes, bytes]],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    all_bodies: Body,
) -> tuple[bytes, int]:
    """The body, and how much of the common bound it holds until ``give_back``.

    Raises:
        WireError: too large, cut off, or packed in an unknown or broken way. OverloadError: no room.
    """
    encoding = ""
    for key, value in headers:
        if key == b"content-length" and value.isdigit():
            _check_size(int(value[:20]), all_bodies.limits.max_bytes)
        elif key == b"content-encoding":
            encoding = value.decode("latin-1").strip().lower()
    held = 0
    try:
        message = await receive()
        held += _taken(message, held, all_bodies)
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            chunks = [body]
            async with asyncio.timeout(all_bodies.limits.max_wait_s):
                while message.get("more_body"):
                    message = await receive()
                    held += _taken(message, held, all_bodies)
                    chunks.append(message.get("body", b""))
            body = b"".join(chunks)
        if encoding and encoding != "identity":
            body = _unpacked(body, encoding, all_bodies.limits.max_bytes)
            all_bodies.take(len(body))
            held += len(body)
    except TimeoutError as error:
        all_bodies.give_back(held)
        raise WireError("the rest of the request did not come", 408) from error
    except BaseException:
        all_bodies.give_back(held)
        raise
    return body, held


def _taken(message: MutableMapping[str, Any], held: int, all_bodies: Body) -> int:
    if message["type"] == "http.disconnect":
        raise WireError("the caller has gone away", 400)
    size = len(message.get("body", b""))
    _check_size(held + size, all_bodies.limits.max_bytes)
    all_bodies.take(size)
    return size


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise WireError(f"the body is larger than the {most} bytes that are taken", 413)


def _unpacked(body: bytes, encoding: str, most: int) -> bytes:
    window_bits = _WINDOW_BITS.get(encoding)
    if window_bits is None:
        raise WireError(
            f"Content-Encoding {encoding[:40]!r} is not understood: use gzip or deflate", 415
        )
    unpacker = zlib.decompressobj(window_bits)
    try:
        data = unpacker.decompress(body, most + 1)
    except zlib.error as error:
        raise WireError(f"the body is not {encoding}: {error}", 400) from error
    _check_size(len(data), most)
    if not unpacker.eof or unpacker.unused_data:
        raise WireError(f"the body is not one whole {encoding} stream", 400)
    return data
