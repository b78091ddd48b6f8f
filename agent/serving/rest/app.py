"""The protocol's HTTP paths as an ASGI application.

Rules kept here:

- What is answered is ``agent.serving.protocol``'s; here are only paths, headers and status codes.
- Every error is ``{"error": "..."}``, the protocol's form; "not ready" is a status in the 400s.
- Bodies are bounded, one by one and together, before they are in memory; a caller that stops
  sending is not waited for.
- A web page somewhere else must not reach the models through a browser on this device: over TCP,
  ``Host`` and ``Origin`` must be this machine.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from agent.bundle import TensorSpec
from agent.errors import ConfigError
from agent.runtime.errors import NotReadyError
from agent.serving.errors import OverloadError, WireError
from agent.serving.placement import Company, Placement, PlacementLimits
from agent.serving.protocol import (
    PLATFORM,
    Answer,
    Fault,
    InferenceProtocol,
    Question,
    fault_of,
)
from agent.serving.rest.body import Body, BodyLimits, read_body
from agent.serving.rest.codec import HEADER_LENGTH, Payload, parse_request
from agent.trust.loopback import require_loopback

__all__ = ["STATUSES", "RestApp", "RestLimits"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

STATUSES: Final[Mapping[Fault, int]] = {
    Fault.NOT_FOUND: 404,
    Fault.UNAVAILABLE: 503,
    Fault.INVALID_ARGUMENT: 400,
    Fault.DEADLINE_EXCEEDED: 504,
    Fault.PERMISSION_DENIED: 403,
    Fault.RESOURCE_EXHAUSTED: 503,
    Fault.INTERNAL: 500,
}
_HEADER_LENGTH: Final = HEADER_LENGTH.encode()
_NAMES_US: Final = (b"host", b"origin")
_MAX_LOCAL: Final = 64
_HELD_TRIES: Final = 4
_JSON: Final = (b"content-type", b"application/json")
_BINARY: Final = (b"content-type", b"application/octet-stream")


@dataclass(frozen=True, slots=True)
class RestLimits:
    """Bounds of the HTTP front end."""

    pool_threads: int = 2
    """Answer what is too slow for the event loop."""
    max_requests: int = 512
    """Under way or waiting for a thread; more are answered 503 at once."""
    body: BodyLimits = BodyLimits()  # noqa: RUF009 (frozen)
    placement: PlacementLimits = PlacementLimits()  # noqa: RUF009 (frozen)


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)


class RestApp:
    """Answers HTTP requests. Belongs to one event loop."""

    def __init__(self, protocol: InferenceProtocol, limits: RestLimits | None = None) -> None:
        self._protocol = protocol
        self._limits = limits or RestLimits()
        self._placement = Placement(self._limits.placement)
        self._company = Company(self._limits.placement)
        self._pool = ThreadPoolExecutor(self._limits.pool_threads, thread_name_prefix="rest")
        self._requests = 0
        self._body = Body(self._limits.body)
        self._local: set[tuple[bytes, bytes]] = set()
        """Headers found good: taking an address apart costs more than a small model's run."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entry."""
        if scope["type"] != "http":  # websockets and lifespan are switched off in the server
            return
        reply = await self._reply(scope, receive)
        headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    async def _reply(self, scope: Scope, receive: Receive) -> _Reply:
        parts = scope["path"].strip("/").split("/")
        try:
            if self._requests >= self._limits.max_requests:
                raise OverloadError(f"{self._requests} requests are under way; try again later")
            self._requests += 1
            try:
                self._check_local(scope)
                return await self._route(parts, scope, receive)
            finally:
                self._requests -= 1
        except WireError as error:
            return _error(error.status, str(error))
        except Exception as error:  # noqa: BLE001 each has its status; unknown ones are logged there
            model = parts[2] if len(parts) > 2 else ""
            fault, text = fault_of(error, model)
            return _error(STATUSES[fault], text)

    def _check_local(self, scope: Scope) -> None:
        """Refuse, over TCP, what does not name this machine. Raises WireError."""
        server = scope.get("server")
        if server is None or server[1] is None:
            return  # a unix socket: browsers cannot reach it
        for header in scope["headers"]:
            if header[0] in _NAMES_US and tuple(header) not in self._local:
                _check_local(*header)
                if len(self._local) < _MAX_LOCAL:
                    self._local.add(tuple(header))

    async def _route(self, parts: list[str], scope: Scope, receive: Receive) -> _Reply:
        match parts:
            case ["v2", "models", model, "versions", version, "infer"] if version:
                return await self._infer(model, version, scope, receive)
            case ["v2", "models", model, "infer"]:
                return await self._infer(model, "", scope, receive)
            case ["v2", "models", model, "feedback"]:
                return await self._told(self._protocol.feedback.rest, model, scope, receive)
            case ["v2", "models", model, "count"]:
                return await self._told(self._protocol.counting.rest, model, scope, receive)
            case ["v2", "models", model, "versions", version, *rest] if version:
                return self._model(model, version, rest, scope)
            case ["v2", "models", model, *rest] if model:
                return self._model(model, "", rest, scope)
            case ["v2"]:
                _allow(scope, "GET")
                return _said(self._server_metadata())
            case ["v2", "health", ("live" | "ready") as what]:
                _allow(scope, "GET")
                ready = what == "live" or self._protocol.server_ready()
                return _said({what: ready}, 200 if ready else 400)
            case ["v2", "repository", *rest]:
                return await self._repository(rest, scope, receive)
        raise _unknown(scope)

    # --- the short way ----------------------------------------------------------------------------

    def known_local(self, header: tuple[bytes, bytes]) -> bool:
        """Whether this ``Host`` or ``Origin`` was found to be this machine before."""
        return header in self._local

    def answer_now(
        self, model: str, version: str, body: bytes, header_length: int | None, client: int = 0
    ) -> tuple[int, Payload] | None:
        """Status and body for a usual question, without a task; None: it takes the long way.

        ``client`` is a number that is the connection's own."""
        key = (model, version)
        alone = self._company.alone(client, self._requests)
        if self._requests >= self._limits.max_requests or not self._placement.inline(
            model, version, len(body), alone=alone
        ):
            return None
        try:
            payload, servable, took_s = self._run(
                model, version, body, header_length, self._placement.clock(key)
            )
        except NotReadyError as error:
            if error.held:  # the long way waits
                return None
            return _failure(error, model)
        except Exception as error:  # noqa: BLE001 each has its status; unknown ones are logged there
            return _failure(error, model)
        self._placement.record_inline(key, servable, len(body), took_s)
        return 200, payload

    # --- questions --------------------------------------------------------------------------------

    async def _infer(self, model: str, version: str, scope: Scope, receive: Receive) -> _Reply:
        _allow(scope, "POST")
        header_length = _header_length(scope["headers"])
        body, size = await read_body(scope["headers"], receive, self._body)
        try:
            answer = await self._answered(model, version, body, header_length)
        finally:
            self._body.give_back(size)
        if answer.header_length is None:
            return _Reply(200, answer.body)
        return _Reply(200, answer.body, (_BINARY, (_HEADER_LENGTH, b"%d" % answer.header_length)))

    async def _told(
        self,
        take: Callable[[str, bytes], tuple[int, bytes]],
        model: str,
        scope: Scope,
        receive: Receive,
    ) -> _Reply:
        _allow(scope, "POST")
        body, size = await read_body(scope["headers"], receive, self._body)
        try:
            return _Reply(*take(model, bytes(body)))
        finally:
            self._body.give_back(size)

    async def _answered(
        self, model: str, version: str, body: bytes, header_length: int | None
    ) -> Payload:
        """The answer, after a wait where the model makes room for its next version."""
        for _ in range(_HELD_TRIES):
            await self._protocol.wait_held(model)
            try:
                return await self._placed(model, version, body, header_length)
            except NotReadyError as error:
                if not error.held:  # else that has begun since the look
                    raise
        raise OverloadError(f"model {model!r} is being replaced again and again; try again later")

    async def _placed(
        self, model: str, version: str, body: bytes, header_length: int | None
    ) -> Payload:
        """Run on the loop or in the pool, as measured."""
        await self._protocol.wait_held(model)
        key, size = (model, version), len(body)
        if self._placement.inline(model, version, size):
            payload, servable, took_s = self._run(
                model, version, body, header_length, self._placement.clock(key)
            )
            self._placement.record_inline(key, servable, size, took_s)
            return payload
        loop = asyncio.get_running_loop()
        payload, servable, took_s = await loop.run_in_executor(
            self._pool, self._run, model, version, body, header_length
        )
        self._placement.record(key, servable, size, took_s, inline=False)
        return payload

    def _run(
        self,
        model: str,
        version: str,
        body: bytes,
        header_length: int | None,
        clock: Callable[[], float] = time.thread_time,
    ) -> tuple[Payload, str, float]:
        """The answer, the digest of the version that gave it, and the seconds it took by ``clock``."""
        began_s = clock()
        servable = ""

        def encode(answer: Answer) -> Payload:
            nonlocal servable
            servable = answer.servable_sha256
            return request.encode(answer)

        request = parse_request(body, header_length)
        payload = self._protocol.infer(
            Question(
                model=model,
                version=version,
                decode=request.decode,
                encode=encode,
                outputs=request.outputs,
                parameters=request.parameters,
                request_id=request.id,
                waits=False,
            )
        )
        return payload, servable, clock() - began_s

    def _model(self, model: str, version: str, rest: list[str], scope: Scope) -> _Reply:
        if rest == ["ready"]:
            _allow(scope, "GET")
            ready = self._protocol.model_ready(model, version)
            return _said({"name": model, "ready": ready}, 200 if ready else 400)
        if rest:
            raise _unknown(scope)
        _allow(scope, "GET")
        manifest, versions = self._protocol.model_metadata(model, version)
        return _said(
            {
                "name": manifest.model,
                "versions": list(versions),
                "platform": PLATFORM,
                "inputs": [_tensor_metadata(spec) for spec in manifest.inputs],
                "outputs": [_tensor_metadata(spec) for spec in manifest.outputs],
            }
        )

    def _server_metadata(self) -> Mapping[str, Any]:
        name, version, extensions = self._protocol.server_metadata()
        return {"name": name, "version": version, "extensions": list(extensions)}

    async def _repository(self, rest: list[str], scope: Scope, receive: Receive) -> _Reply:
        match rest:
            case ["index"]:
                _allow(scope, "POST")
                body, size = await read_body(scope["headers"], receive, self._body)
                self._body.give_back(size)
                entries = self._protocol.repository_index(ready=_ready_only(body))
                return _said(
                    [
                        {
                            "name": entry.name,
                            "version": entry.version,
                            "state": entry.state,
                            "reason": entry.reason,
                        }
                        for entry in entries
                    ]
                )
            case ["models", _, "load" | "unload"]:
                _allow(scope, "POST")
                self._protocol.refuse_change()
        raise _unknown(scope)


def _ready_only(body: bytes) -> bool:
    """What the request for an index asks for. Raises WireError."""
    if not body.strip():
        return False
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(f"the request is not JSON: {error}", 400) from error
    ready = said.get("ready", False) if isinstance(said, dict) else None
    if not isinstance(ready, bool):
        raise WireError("the request must be an object whose 'ready' is true or false", 400)
    return ready


def _tensor_metadata(spec: TensorSpec) -> Mapping[str, Any]:
    return {"name": spec.name, "datatype": spec.dtype, "shape": list(spec.shape)}


def _allow(scope: Scope, method: str) -> None:
    if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
        raise WireError(f"{scope['path'][:200]} takes {method}, not {scope['method'][:20]}", 405)


def _unknown(scope: Scope) -> WireError:
    return WireError(
        f"there is nothing at {scope['path'][:200]!r}: this is the Open Inference Protocol, "
        f"which begins at /v2",
        404,
    )


def _header_length(headers: Headers) -> int | None:
    for key, value in headers:
        if key == b"inference-header-content-length":
            if not value.isdigit() or len(value) > 18:
                raise WireError(f"{HEADER_LENGTH} must be a number of bytes", 400)
            return int(value)
    return None


def _check_local(key: bytes, value: bytes) -> None:
    """Refuse a ``Host`` or ``Origin`` that is not this machine. Raises WireError."""
    text = value.decode("latin-1")
    try:
        name = urlsplit(f"//{text}" if key == b"host" else text).hostname or ""
        require_loopback(name, "the header")
    except (ValueError, ConfigError) as error:
        raise WireError(
            f"{key.decode().capitalize()} {text[:200]!r} is not this machine: "
            f"use 127.0.0.1, ::1 or localhost",
            403,
        ) from error


def _failure(error: Exception, model: str) -> tuple[int, Payload]:
    fault, text = fault_of(error, model)
    return STATUSES[fault], Payload(_json({"error": text}))


def _said(value: Any, status: int = 200) -> _Reply:
    return _Reply(status, _json(value))


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def _error(status: int, text: str) -> _Reply:
    headers = (_JSON, (b"allow", b"GET, POST")) if status == 405 else (_JSON,)
    return _Reply(status, _json({"error": text}), headers)
