"""Errors as answers: one body, ``{"error": CLASS, "message": TEXT}``, one status a kind of fault.

Rules kept here: an error of ours says what happened; a bug says nothing about our inside to the
caller and everything to the log.
"""

import logging
from collections.abc import Mapping
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import agent.errors
from fleet.errors import (
    ConfigError,
    ConflictError,
    FleetError,
    ForbiddenError,
    NotFoundError,
    RefusedError,
    RequestError,
    TooManyError,
    UnauthenticatedError,
)

__all__ = ["PROBLEM", "install", "problem", "status_of"]

_LOG = logging.getLogger(__name__)
PROBLEM: Final = "problem"
"""Where in a request's state the message of its error is kept, for the audit log."""
_STATUS: Final[tuple[tuple[type[Exception], int], ...]] = (
    (NotFoundError, 404),
    (ConflictError, 409),
    (RefusedError, 400),
    (RequestError, 422),
    (ConfigError, 422),
    (UnauthenticatedError, 401),
    (ForbiddenError, 403),
    (TooManyError, 429),
    (agent.errors.BundleError, 400),
    (agent.errors.TrustError, 400),
    (agent.errors.ConfigError, 422),
)
_NAMES: Final[Mapping[int, str]] = {404: "NotFoundError", 413: "RequestError"}


def status_of(error: Exception) -> int:
    """The HTTP status for an error of ours."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def install(app: FastAPI) -> None:
    """Answer every error in this form."""
    app.add_exception_handler(FleetError, _ours)
    app.add_exception_handler(agent.errors.AgentError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _bug)


def problem(error: FleetError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error of ours as an answer."""
    return _answer(status_of(error), type(error).__name__, str(error), headers)


async def _ours(request: Request, error: Exception) -> JSONResponse:
    status = status_of(error)
    if status >= 500:
        _LOG.error("%s", error)
    setattr(request.state, PROBLEM, str(error))
    return _answer(status, type(error).__name__, str(error))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = [
        f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()[:5]
    ]
    text = f"the request is not understood: {'; '.join(found)}"
    setattr(request.state, PROBLEM, text)
    return _answer(422, "RequestError", text)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    text = error.detail
    if error.status_code in {404, 405}:
        text = f"{request.method} {request.url.path} is not part of this API: see /docs"
    setattr(request.state, PROBLEM, text)
    name = _NAMES.get(error.status_code, "RequestError")
    return _answer(error.status_code, name, text, error.headers)


async def _bug(request: Request, error: Exception) -> JSONResponse:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(500, "ServerError", "the fleet manager failed: its log says why")


def _answer(
    status: int, error: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse({"error": error, "message": message}, status, headers)
