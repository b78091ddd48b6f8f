"""What every HTTP request must satisfy before anyone looks at it.

Rules kept here: a body has a limit, said or not; the host asked for, and the page that asks, are on
this machine, or have a name that the server's certificate is for. The second keeps a web page that an
operator happens to visit from speaking to the API (by a form, or by a name that resolves to 127.0.0.1).
"""

from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import agent.errors
from agent.trust.loopback import require_loopback

__all__ = ["MAX_BODY_BYTES", "Guard"]

MAX_BODY_BYTES: Final = 4 * 1024 * 1024


class Guard:
    """ASGI middleware. ``names``: the hosts beside this machine's loopback that may be asked for, lower-case."""

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int = MAX_BODY_BYTES,
        names: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = _foreign(scope["headers"], self._names())
        if refusal:
            await _answer(403, refusal)(scope, receive, send)
            return
        too_large = f"the body has more than {self._max_body_bytes} bytes"
        length = _header(scope["headers"], b"content-length")
        if length.isdigit() and int(length) > self._max_body_bytes:
            await _answer(413, too_large)(scope, receive, send)
            return
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body_bytes:
                raise HTTPException(413, too_large)  # the one error that body parsers let pass
            return message

        await self._app(scope, limited, send)


def _foreign(headers: Iterable[tuple[bytes, bytes]], names: frozenset[str]) -> str:
    """Why this request is for another host, or from another's page; empty when it is not."""
    host = _header(headers, b"host")
    origin = _header(headers, b"origin")
    for what, address in (("Host", f"//{host}"), ("Origin", origin)):
        if not address or address == "//":
            continue
        try:
            name = urlsplit(address).hostname or ""
            if name not in names:
                require_loopback(name, f"{what} header")
        except (ValueError, agent.errors.ConfigError):
            known = ", ".join(sorted(names))
            use = (
                f"use one of the names in its certificate: {known}"
                if known
                else "use http://127.0.0.1"
            )
            return f"{what} {address.lstrip('/')[:200]!r} is not this machine: {use}"
    return ""


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key == name), "")


def _answer(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": "RequestError", "message": message}, status)
