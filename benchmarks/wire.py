"""Clients that cost next to nothing: one prepared request, sent over and over on a connection that stays open.

A usual client library needs more processor time a request than a good server does, and on a machine of two cores its
cost would hide what is measured. So request bytes are prepared once, answers are cut out of the stream and not looked
into; only ``ask_once`` gives back a body, for checking that every server answers the same. Rules kept here:

- HTTP/1.1 with Content-Length, and of HTTP/2 what a unary gRPC call needs: flow control, SETTINGS, PING, GOAWAY.
- One request at a time a connection. A gRPC answer counts when it has a message, an HTTP answer when it is 200.
"""

import socket
import struct
from dataclasses import dataclass
from typing import Final, Protocol

__all__ = ["Connection", "Target", "ask_once", "connect"]

GRPC_PATH: Final = "/inference.GRPCInferenceService/ModelInfer"
RECEIVE_BYTES: Final = 1 << 18
WINDOW_BYTES: Final = (1 << 31) - 1
REFILL_BYTES: Final = 1 << 24

_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW, _MAX_FRAME = 4, 5


@dataclass(frozen=True, slots=True)
class Target:
    """One prepared request. ``kind`` is "grpc" or "rest"; ``body`` is the message or the HTTP body."""

    kind: str
    port: int
    body: bytes
    path: str = GRPC_PATH
    headers: tuple[tuple[str, str], ...] = ()


class Connection(Protocol):
    """An open connection to a server on the loopback."""

    socket: socket.socket

    def send(self) -> None:
        """Send the prepared request. Nothing is under way when this is called."""
        ...

    def receive(self) -> bytes | None:
        """Take what has come; the answer's body once it is whole, b"" for an answer that is a failure.

        Raises:
            ConnectionError: the server ended the connection.
        """
        ...


def connect(target: Target) -> Connection:
    """Open a connection. Raises OSError."""
    return _Http2(target) if target.kind == "grpc" else _Http1(target)


def ask_once(target: Target, timeout_s: float = 10.0) -> bytes:
    """The body of one answer, b"" when it is a failure. Raises OSError."""
    connection = connect(target)
    try:
        connection.socket.settimeout(timeout_s)
        connection.send()
        while True:
            body = connection.receive()
            if body is not None:
                return body
    finally:
        connection.socket.close()


def _open(port: int) -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", port), timeout=30.0)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


class _Http1:
    def __init__(self, target: Target) -> None:
        self.socket = _open(target.port)
        headers = (
            ("Host", "127.0.0.1"),
            ("Content-Length", str(len(target.body))),
            *target.headers,
        )
        head = f"POST {target.path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers)
        self._request = head.encode() + b"\r\n" + target.body
        self._buffer = bytearray()
        self._need = 0
        self._body_at = 0

    def send(self) -> None:
        self.socket.sendall(self._request)

    def receive(self) -> bytes | None:
        data = self.socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._buffer += data
        if not self._need:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return None
            head = bytes(self._buffer[:end]).lower()
            _, found, rest = head.partition(b"\r\ncontent-length:")
            if not found:
                raise ConnectionError("an answer without Content-Length")
            self._body_at = end + 4
            self._need = self._body_at + int(rest.split(b"\r\n", 1)[0])
        if len(self._buffer) < self._need:
            return None
        good = self._buffer[9:12] == b"200"
        body = bytes(self._buffer[self._body_at : self._need]) if good else b""
        del self._buffer[: self._need]
        self._need = 0
        return body


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes((kind, flags))
        + stream.to_bytes(4, "big")
        + payload
    )


def _literal(text: str) -> bytes:
    raw = text.encode()
    assert len(raw) < 127
    return bytes((len(raw),)) + raw


class _Http2:
    def __init__(self, target: Target) -> None:
        self.socket = _open(target.port)
        # Fields by HPACK's static table, nothing indexed: the same bytes are right for every request.
        self._fields = (
            b"\x83\x86\x04" + _literal(target.path)
            + b"\x01" + _literal("127.0.0.1")
            + b"\x0f\x10" + _literal("application/grpc")
            + b"\x00" + _literal("te") + _literal("trailers")
        )  # fmt: skip
        self._message = b"\x00" + struct.pack(">I", len(target.body)) + target.body
        self._stream = -1
        self._unsent = 0
        self._max_frame, self._initial = 16_384, 65_535
        self._window, self._stream_window = 65_535, 65_535
        self._received = 0
        self._buffer = bytearray()
        self._body = bytearray()
        settings = struct.pack(">HIHI", _INITIAL_WINDOW, WINDOW_BYTES, _MAX_FRAME, 1 << 20)
        grow = struct.pack(">I", WINDOW_BYTES - 65_535)
        self.socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW, 0, 0, grow)
        )  # fmt: skip

    def send(self) -> None:
        self._stream += 2
        self._body.clear()
        self._stream_window = self._initial
        self._unsent = len(self._message)
        self._send_data(_frame(_HEADERS, _END_HEADERS, self._stream, self._fields))

    def _send_data(self, before: bytes = b"") -> None:
        """As much of the message as the server's windows allow."""
        out = [before]
        while self._unsent:
            size = min(self._unsent, self._max_frame, self._window, self._stream_window)
            if size <= 0:
                break
            at = len(self._message) - self._unsent
            self._unsent -= size
            self._window -= size
            self._stream_window -= size
            flags = 0 if self._unsent else _END_STREAM
            out.append(_frame(_DATA, flags, self._stream, self._message[at : at + size]))
        joined = b"".join(out)
        if joined:
            self.socket.sendall(joined)

    def receive(self) -> bytes | None:
        data = self.socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._buffer += data
        self._refill(len(data))
        ended = False
        while len(self._buffer) >= 9:
            size = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + size:
                break
            kind, flags = self._buffer[3], self._buffer[4]
            stream = int.from_bytes(self._buffer[5:9], "big")
            payload = bytes(self._buffer[9 : 9 + size])
            del self._buffer[: 9 + size]
            ended = self._take(kind, flags, stream, payload) or ended
        return bytes(self._body[5:]) if ended else None

    def _refill(self, size: int) -> None:
        self._received += size
        if self._received >= REFILL_BYTES:
            self.socket.sendall(_frame(_WINDOW, 0, 0, struct.pack(">I", self._received)))
            self._received = 0

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> bool:
        """One frame; True when it ends the answer."""
        if kind == _DATA:
            self._body += payload
            return bool(flags & _END_STREAM)
        if kind == _HEADERS:
            return bool(flags & _END_STREAM)
        if kind == _RST:
            self._body.clear()
            return stream == self._stream
        if kind == _GOAWAY:
            raise ConnectionError("the server said GOAWAY")
        self._control(kind, flags, stream, payload)
        return False

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            for key, value in struct.iter_unpack(">HI", payload):
                if key == _INITIAL_WINDOW:
                    self._stream_window += value - self._initial
                    self._initial = value
                elif key == _MAX_FRAME:
                    self._max_frame = value
            self.socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self.socket.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW:
            increment = int.from_bytes(payload, "big")
            if stream == 0:
                self._window += increment
            elif stream == self._stream:
                self._stream_window += increment
        if self._unsent:
            self._send_data()
