"""How many fields a protobuf message has, told by a look at its bytes.

Rules kept here: reading a message makes an object for each part that it repeats, also for an empty one of two bytes, so
a megabyte of them takes fifty. Where a stranger decides how many there are, they are counted first.
"""

__all__ = ["has_more_fields"]

_MAX_VARINT_BYTES = 10


def has_more_fields(message: bytes | bytearray, most: int) -> bool:
    """Whether there are more than ``most`` fields, not looking into them; what is no message is left to its reader."""
    at = count = 0
    end = len(message)
    while at < end and count <= most:
        key, at = _varint(message, at)
        count += 1
        match key & 7:
            case 0:
                _, at = _varint(message, at)
            case 1:
                at += 8
            case 2:
                size, at = _varint(message, at)
                at += size
            case 5:
                at += 4
            case _:
                return False  # groups are not of this syntax, and what else is no message
    return count > most


def _varint(message: bytes | bytearray, at: int) -> tuple[int, int]:
    """The number at ``at`` and where it ends; one that has no end ends the message."""
    value = 0
    for place, byte in enumerate(message[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    return value, len(message)
