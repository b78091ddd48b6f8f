"""The door of the HTTP API: nobody gets in without a token, and nobody further than the role of it.

Rules kept here: the table of ``fleet.operators.access`` decides, and what is not in it is not there; the body of a
request is not read before its sender is known; whatever changes something is in the audit log before it is answered,
and what was refused too.
"""

import math
from typing import Any, Final

from fastapi import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet.api.problems import PROBLEM, problem
from fleet.errors import (
    FleetError,
    ForbiddenError,
    NotFoundError,
    TooManyError,
    UnauthenticatedError,
)
from fleet.operators.access import OPEN, Rule, find_rule, is_known
from fleet.operators.call import DONE, FAILED, REFUSED, Call
from fleet.operators.desk import Operators

__all__ = ["Door", "call_of"]

_CALL: Final = "call"
_NOT_ALLOWED: Final = 1008  # RFC 6455: policy violation
_BUG: Final = "the fleet manager failed: its log says why"


def call_of(request: Request) -> Call:
    """Who sends this request, and what the audit log will say of it."""
    call: Call = request.state.call
    return call


class Door:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, operators: Operators) -> None:
        self._app = app
        self._operators = operators

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there is none, and none gets past here by being added
            await send({"type": "websocket.close", "code": _NOT_ALLOWED})
            return
        if scope["type"] != "http" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        rule = find_rule(method, path)
        call = self._operators.call("login" if rule is None else rule.operation, path)
        scope.setdefault("state", {})[_CALL] = call
        try:
            call.caller = await self._operators.admit(*_shown(scope))
            if rule is not None:
                call.caller.require(rule.role, f"`{rule.operation}`")
        except (UnauthenticatedError, ForbiddenError, TooManyError) as error:
            if _is_worth_a_line(scope, rule, error):
                await self._operators.note_refused(call.entry(REFUSED, str(error)))
            await self._refuse(call, rule, error)(scope, receive, send)
            return
        if rule is None:
            await _not_here(method, path)(scope, receive, send)
        elif rule.audited:
            await self._audited(call, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refuse(self, call: Call, rule: Rule | None, error: FleetError) -> JSONResponse:
        headers = {}
        if isinstance(error, UnauthenticatedError):
            headers["www-authenticate"] = "Bearer"
        if isinstance(error, TooManyError):
            headers["retry-after"] = str(math.ceil(error.retry_after_s))
        return problem(error, headers)

    async def _audited(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        told = False

        async def telling(message: Message) -> None:
            nonlocal told
            if message["type"] == "http.response.start":
                told = True
                await self._tell(call, message["status"], scope["state"].get(PROBLEM, ""))
            await send(message)

        try:
            await self._app(scope, receive, telling)
        except Exception:
            if not told:
                await self._operators.note_refused(call.entry(FAILED, _BUG))
            raise

    async def _tell(self, call: Call, status: int, problem: str) -> None:
        if status >= 400:
            await self._operators.note_refused(
                call.entry(FAILED if status >= 500 else REFUSED, problem)
            )
            return
        if not call.is_written:  # the handler had no transaction to write it in
            await self._operators.note(call.entry(DONE))
        await self._operators.keep_head()


def _is_open(scope: Scope) -> bool:
    return scope["path"] in OPEN and scope["method"] in {"GET", "HEAD"}


def _shown(scope: Scope) -> tuple[str, str]:
    """The ``Authorization`` header and the address it comes from."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    shown = [value.decode("latin-1") for key, value in headers if key == b"authorization"]
    client: Any = scope.get("client")
    return (shown[0] if len(shown) == 1 else ""), (client[0] if client else "")


def _is_worth_a_line(scope: Scope, rule: Rule | None, error: FleetError) -> bool:
    """A stranger who only looks is none; one who tries a token, or to change something, is."""
    changes = rule is not None and rule.audited
    return changes or not isinstance(error, UnauthenticatedError) or bool(_shown(scope)[0])


def _not_here(method: str, path: str) -> JSONResponse:
    error = NotFoundError(f"{method} {path} is not part of this API: see /docs")
    if not is_known(path):
        return problem(error)
    return JSONResponse({"error": "RequestError", "message": str(error)}, 405)
