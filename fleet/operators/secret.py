"""The text of a token: ``muster_``, 256 random bits, and a checksum. Pure but for the random bits it is given.

Rules kept here: a mistyped or shortened token is told from a wrong one without asking anybody, and a scanner for
leaked secrets finds one by its form; what is stored is the SHA-256 of the text. That needs neither salt nor slow
hashing: those defend secrets that people choose, and nobody tries 2^256 random ones.
"""

import hashlib
import re
import zlib
from typing import Final

from fleet.errors import UnauthenticatedError

__all__ = ["PREFIX", "SECRET_BYTES", "digest_of", "make_token"]

PREFIX: Final = "muster_"
SECRET_BYTES: Final = 32
_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_CHARS: Final = 43  # of 62: enough for 256 bits
_CHECK_CHARS: Final = 6  # enough for 32 bits
_FORM: Final = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_SECRET_CHARS + _CHECK_CHARS}}}")


def make_token(random: bytes) -> str:
    """The token with these ``SECRET_BYTES`` random bytes."""
    if len(random) != SECRET_BYTES:
        raise ValueError(f"a token has {SECRET_BYTES} random bytes, not {len(random)}")
    text = PREFIX + _base62(int.from_bytes(random, "big"), _SECRET_CHARS)
    return text + _checksum(text)


def digest_of(token: str) -> str:
    """What is stored of a token: SHA-256 of its text, in hex.

    Raises:
        UnauthenticatedError: it is none, by its form alone. The message never has the token.
    """
    if not _FORM.fullmatch(token) or token[-_CHECK_CHARS:] != _checksum(token[:-_CHECK_CHARS]):
        raise UnauthenticatedError(
            f"that is no token of Muster's: one begins with {PREFIX} and has "
            f"{len(PREFIX) + _SECRET_CHARS + _CHECK_CHARS} characters. A character is wrong or missing: copy it again"
        )
    return hashlib.sha256(token.encode("ascii")).hexdigest()


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode("ascii")), _CHECK_CHARS)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
