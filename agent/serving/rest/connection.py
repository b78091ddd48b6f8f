"""One HTTP connection: uvicorn's, with a short way for the requests that nearly everybody sends.

A task, an event and four messages between server and application cost more than a small model's run. A usual request
is answered from within the parser instead.

Rules kept here:

- Usual is: ``POST .../infer`` by HTTP/1.1, nothing unusual among its headers, whole in one read, alone on its
  connection, for a model that runs on the event loop. Everything else takes uvicorn's way, with the same answers, and
  so does what turns out to be unusual later: nothing has been done by then.
- Checks are the application's own; none is left out. A ``Host`` or ``Origin`` that it has not seen goes the long way.
"""

import http
import re
from functools import lru_cache
from typing import Any, Final, NamedTuple

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from agent.serving.rest.app import RestApp
from agent.serving.rest.codec import HEADER_LENGTH, Payload

__all__ = ["RestConnection"]

_INFER: Final = re.compile(rb"/v2/models/([A-Za-z0-9._-]+)(?:/versions/([A-Za-z0-9._-]+))?/infer")
_UNUSUAL: Final = frozenset(
    {b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", b"connection"}
)
_KEEP_ALIVE: Final = (b"connection", b"keep-alive")
_HEADER_LENGTH: Final = HEADER_LENGTH.lower().encode()
_NAMES_US: Final = (b"host", b"origin")
_MAX_DIGITS: Final = 18


class _Usual(NamedTuple):
    """A request on the short way, as far as its head says."""

    model: str
    version: str
    header_length: int | None
    parts: list[bytes]


class RestConnection(HttpToolsProtocol):
    """uvicorn's protocol; its configuration's application is a ``RestApp``."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._usual: _Usual | None = None
        app = self.config.app
        assert isinstance(app, RestApp)
        self._rest = app

    def data_received(self, data: bytes) -> None:
        """asyncio's. What is not whole by its end takes the long way, which knows how long to wait."""
        super().data_received(data)
        if self._usual is not None:
            self._go_the_long_way()

    def on_headers_complete(self) -> None:
        """The parser's."""
        self._usual = self._find_usual()
        if self._usual is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The parser's."""
        if self._usual is None:
            super().on_body(body)
        else:
            self._usual.parts.append(body)

    def on_message_complete(self) -> None:
        """The parser's."""
        usual = self._usual
        if usual is not None:
            body = usual.parts[0] if len(usual.parts) == 1 else b"".join(usual.parts)
            answer = self._rest.answer_now(
                usual.model, usual.version, body, usual.header_length, id(self)
            )
            if answer is not None:
                self._usual = None
                self.transport.write(_response(*answer))
                self.on_response_complete()
                return
            self._go_the_long_way()
        super().on_message_complete()

    def _go_the_long_way(self) -> None:
        """As if the short one had never been thought of."""
        usual, self._usual = self._usual, None
        if usual is None or self.transport.is_closing():
            return
        super().on_headers_complete()
        for part in usual.parts:
            super().on_body(part)

    def _find_usual(self) -> _Usual | None:
        parser, cycle = self.parser, self.cycle
        if (
            parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or (cycle is not None and not cycle.response_complete)
            or self.flow.write_paused
            or not self._has_room()
        ):
            return None
        named = _named(self.url)
        if named is None:
            return None
        header_length: int | None = None
        over_tcp = self.server is not None and self.server[1] is not None
        for header in self.headers:
            name, value = header
            if name in _UNUSUAL and header != _KEEP_ALIVE:
                return None
            if name == _HEADER_LENGTH:
                if header_length is not None or not value.isdigit() or len(value) > _MAX_DIGITS:
                    return None
                header_length = int(value)
            elif over_tcp and name in _NAMES_US and not self._rest.known_local(header):
                return None
        return _Usual(*named, header_length, [])

    def _has_room(self) -> bool:
        """Among uvicorn's connections and tasks, as it looks at them itself."""
        most = self.limit_concurrency
        return most is None or (len(self.connections) < most and len(self.tasks) < most)


@lru_cache(maxsize=256)
def _named(url: bytes) -> tuple[str, str] | None:
    """Model and version of a question's path."""
    found = _INFER.fullmatch(url)
    return None if found is None else (found[1].decode(), (found[2] or b"").decode())


def _response(status: int, payload: Payload) -> bytes:
    body = payload.body
    if payload.header_length is None:
        kind = b"content-type: application/json\r\n"
    else:
        kind = b"content-type: application/octet-stream\r\n%s: %d\r\n" % (
            _HEADER_LENGTH,
            payload.header_length,
        )
    return b"%s%scontent-length: %d\r\n\r\n%s" % (_status_line(status), kind, len(body), body)


@lru_cache(maxsize=64)
def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n".encode()
