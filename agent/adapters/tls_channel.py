"""Channels to the fleet manager on which the device shows its certificate, and which live on when that is renewed.

Rules kept here:
- Calls under way keep the connection that they began on; calls that begin after a renewal use the new certificate.
- The connection before is given time to end, then closed.
- Proxies named in the environment are not used; the server must have a certificate of the CA this device was given.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio

__all__ = ["RenewableChannel", "RenewableSyncChannel", "TlsMaterial"]

DRAIN_S: Final = 30.0
"""How long calls under way may take to end after a renewal; a stream that never ends is begun anew then."""


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """PEM. Without ``key`` and ``chain`` only the server shows a certificate."""

    server_ca: bytes
    key: bytes | None = None
    chain: bytes | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.server_ca, self.key, self.chain)


Options = list[tuple[str, int]]


class _Call:
    """One method of the service, on whichever connection is the present one when it is called."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._make()(*arguments, **named)


class _Renewable:
    """What a generated stub asks of a channel."""

    def __init__(self, open_channel: Callable[[TlsMaterial], Any], material: TlsMaterial) -> None:
        self._open = open_channel
        self._channel = open_channel(material)
        self._methods: dict[tuple[str, str], Any] = {}

    def unary_unary(self, method: str, *arguments: Any, **named: Any) -> _Call:
        return self._method("unary_unary", method, arguments, named)

    def unary_stream(self, method: str, *arguments: Any, **named: Any) -> _Call:
        return self._method("unary_stream", method, arguments, named)

    def stream_unary(self, method: str, *arguments: Any, **named: Any) -> _Call:
        return self._method("stream_unary", method, arguments, named)

    def stream_stream(self, method: str, *arguments: Any, **named: Any) -> _Call:
        return self._method("stream_stream", method, arguments, named)

    def _method(self, kind: str, method: str, arguments: Any, named: Any) -> _Call:
        def on_present() -> Any:
            key = (kind, method)
            if key not in self._methods:
                self._methods[key] = getattr(self._channel, kind)(method, *arguments, **named)
            return self._methods[key]

        return _Call(on_present)

    def _replace(self, material: TlsMaterial) -> Any:
        """Open a new connection for calls from now on; the one before."""
        before, self._channel = self._channel, self._open(material)
        self._methods = {}
        return before


class RenewableChannel(_Renewable):
    """Of grpc.aio; stands in for a channel in stubs."""

    def __init__(self, address: str, options: Options, material: TlsMaterial) -> None:
        super().__init__(
            lambda now: grpc.aio.secure_channel(address, now.credentials(), options=options),
            material,
        )
        self._draining: set[asyncio.Task[None]] = set()

    async def renew(self, material: TlsMaterial) -> None:
        """Use another certificate for calls that begin from now on."""
        before = self._replace(material)
        task = asyncio.create_task(before.close(DRAIN_S))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    async def close(self) -> None:
        """End every call."""
        for task in tuple(self._draining):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._channel.close()


class RenewableSyncChannel(_Renewable):
    """Of grpc, for worker threads. The connection before the present one stays open until the next renewal."""

    def __init__(self, address: str, options: Options, material: TlsMaterial) -> None:
        super().__init__(
            lambda now: grpc.secure_channel(address, now.credentials(), options=options), material
        )
        self._before: Any = None

    def renew(self, material: TlsMaterial) -> None:
        """Use another certificate for calls that begin from now on."""
        gone, self._before = self._before, self._replace(material)
        if gone is not None:
            gone.close()

    def close(self) -> None:
        """End every call."""
        for channel in (self._before, self._channel):
            if channel is not None:
                channel.close()
