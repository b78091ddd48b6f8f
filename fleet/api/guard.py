"""What every HTTP request must satisfy before anyone looks at it.

Rules kept here: a body has a limit, said or not; the host asked for, and the page that asks, are on
this machine. The second keeps a web page that an operator happens to visit from speaking to an API
that has no accounts yet (by a form, or by a name that resolves to 127.0.0.1).
"""

from collections.abc import Iterable
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
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = _foreign(scope["headers"])
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


def _foreign(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Why this request does not come from this machine; empty when it does."""
    host = _header(headers, b"host")
    origin = _header(headers, b"origin")
    for what, address in (("Host", f"//{host}"), ("Origin", origin)):
        if not address or address == "//":
            continue
        try:
            name = urlsplit(address).hostname or ""
            require_loopback(name, f"{what} header")
        except (ValueError, agent.errors.ConfigError):
            return f"{what} {address.lstrip('/')[:200]!r} is not this machine: use http://127.0.0.1"
    return ""


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key == name), "")


def _answer(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": "RequestError", "message": message}, status)
