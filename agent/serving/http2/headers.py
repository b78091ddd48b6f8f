"""Header blocks: HPACK by the library of that name, RFC 9113's rules for what is in them, and what is answered.

Rules kept here:

- A block that changes nothing in the compression state means the same until something does: it is read once and then
  looked up. A client sends the same block with every request.
- Answers use no compression state at all, so each of theirs is a constant; the few that say more are literals.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from agent.serving.http2.errors import ConnectionBrokenError, ErrorCode, StreamBrokenError

__all__ = [
    "NO_TABLE",
    "Fields",
    "HeaderDecoder",
    "check_request",
    "check_trailers",
    "literal",
    "status",
]

Fields = Sequence[tuple[bytes, bytes]]
T = TypeVar("T")

NO_TABLE: Final = b"\x20"
"""A table of no size: for a peer that allows less than the table there is when nobody says anything."""
_STATUS_200: Final = b"\x88"
_STATUS_NAME: Final = b"\x08"
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_FORBIDDEN_IN_VALUE: Final = re.compile(rb"[\0\r\n]|^[ \t]|[ \t]$")
_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_OF_CONNECTIONS: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)


class HeaderDecoder(Generic[T]):
    """Reads the header blocks of one connection; ``read`` makes of a request's fields what its user wants."""

    __slots__ = ("_decoder", "_known", "_most", "_read")

    def __init__(self, read: Callable[[Fields], T], max_list_bytes: int, remembered: int) -> None:
        """``remembered``: how many blocks are looked up."""
        self._decoder = Decoder(max_list_bytes)
        self._read = read
        self._most = remembered
        self._known: dict[bytes, T] = {}

    def request(self, block: bytes) -> T:
        """What a block that opens a stream says.

        Raises:
            ConnectionBrokenError: it cannot be decoded. StreamBrokenError: what it says is no request.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        fields, lasting = self._decode(block)
        check_request(fields)
        head = self._read(fields)
        if lasting:
            if len(self._known) >= self._most:
                self._known.clear()
            self._known[block] = head
        return head

    def fields(self, block: bytes) -> Fields:
        """What any other block says. Raises ConnectionBrokenError: it cannot be decoded."""
        return self._decode(block)[0]

    def _decode(self, block: bytes) -> tuple[Fields, bool]:
        """The fields, and whether the block may be looked up from now on."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        before = (entries[0] if entries else None, len(entries), table.maxsize)
        try:
            fields = [
                (bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)
            ]
        except OversizedHeaderListError as error:
            raise ConnectionBrokenError(ErrorCode.ENHANCE_YOUR_CALM, str(error)) from error
        except (HPACKError, IndexError, ValueError) as error:
            raise ConnectionBrokenError(
                ErrorCode.COMPRESSION_ERROR, f"a header block cannot be decoded: {error}"
            ) from error
        newest, count, most = before
        same = (entries[0] if entries else None) is newest and len(entries) == count
        if same and table.maxsize == most:
            return fields, True
        self._known.clear()
        return fields, False


def check_request(fields: Fields) -> None:
    """RFC 9113, sections 8.2 and 8.3.

    Raises:
        StreamBrokenError: the fields are malformed.
    """
    pseudo: dict[bytes, bytes] = {}
    regular = False
    for name, value in fields:
        if not name.startswith(b":"):
            regular = True
            continue
        if regular or name not in _PSEUDO or name in pseudo:
            raise _malformed(f"{_shown(name)} twice, unknown or after other fields")
        pseudo[name] = value
    for needed in (b":method", b":scheme", b":path"):
        if not pseudo.get(needed):
            raise _malformed(f"no {_shown(needed)}")
    _check_fields(fields)


def check_trailers(fields: Fields) -> None:
    """Of a request; nothing in them is of use here.

    Raises:
        StreamBrokenError: the fields are malformed.
    """
    if any(name.startswith(b":") for name, _ in fields):
        raise _malformed("pseudo-headers in trailers")
    _check_fields(fields)


def _check_fields(fields: Fields) -> None:
    for name, value in fields:
        if _FORBIDDEN_IN_VALUE.search(value):
            raise _malformed(f"the value of {_shown(name)} has characters that no value may have")
        if name.startswith(b":"):
            continue
        if not _NAME.fullmatch(name):
            raise _malformed(f"{_shown(name)} is no name of a field")
        if name in _OF_CONNECTIONS or (name == b"te" and value != b"trailers"):
            raise _malformed(f"{_shown(name)} is of HTTP/1")


def _malformed(text: str) -> StreamBrokenError:
    return StreamBrokenError(ErrorCode.PROTOCOL_ERROR, f"malformed request: {text}")


def _shown(name: bytes) -> str:
    return name[:60].decode("latin-1")


def status(number: int) -> bytes:
    """``:status`` as the start of a header block."""
    if number == 200:
        return _STATUS_200
    return _STATUS_NAME + _text(str(number).encode())


def literal(name: bytes, value: bytes) -> bytes:
    """A field that leaves no trace in the compression state."""
    return b"\x00" + _text(name) + _text(value)


def _text(raw: bytes) -> bytes:
    """Without Huffman coding: the peer is on this machine."""
    size = len(raw)
    if size < 0x7F:
        return bytes((size,)) + raw
    made = bytearray(b"\x7f")
    size -= 0x7F
    while size >= 0x80:
        made.append(size & 0x7F | 0x80)
        size >>= 7
    made.append(size)
    return bytes(made) + raw
