"""Signatures of webhooks, as Standard Webhooks 1.0 has them. Pure.

HMAC-SHA256 with the secret over ``ID.TIMESTAMP.BODY``, in base64 behind ``v1,``; with several secrets
one signature each, divided by spaces, so that a receiver can change its secret without missing an
event. Source: the specification at standardwebhooks.com, "Signature scheme".
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Final

from fleet.errors import ConfigError

__all__ = ["PREFIX", "parse_secrets", "signed_headers"]

PREFIX: Final = "whsec_"
_LEAST_BYTES: Final = 24
_MOST_BYTES: Final = 64
_MOST_SECRETS: Final = 4


def parse_secrets(text: str, where: str) -> tuple[bytes, ...]:
    """The secrets in a file: one a line, ``whsec_`` and 24 to 64 bytes in base64.

    Raises:
        ConfigError: there is none, or one is not of that form; the message never has the secret.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not 1 <= len(lines) <= _MOST_SECRETS:
        raise ConfigError(
            f"{where} has {len(lines)} secrets: write 1 to {_MOST_SECRETS}, one a line, the newest "
            "first"
        )
    return tuple(_secret(line, f"{where} line {number}") for number, line in enumerate(lines, 1))


def _secret(line: str, where: str) -> bytes:
    how = (
        f"write {PREFIX} and {_LEAST_BYTES} to {_MOST_BYTES} random bytes in base64, for example "
        f'with: echo "{PREFIX}$(openssl rand -base64 32)"'
    )
    try:
        secret = base64.b64decode(line.removeprefix(PREFIX), validate=True)
    except binascii.Error as error:
        raise ConfigError(f"{where} is no secret of a webhook ({error}): {how}") from error
    if not line.startswith(PREFIX) or not _LEAST_BYTES <= len(secret) <= _MOST_BYTES:
        raise ConfigError(f"{where} is no secret of a webhook: {how}")
    return secret


def signed_headers(
    message_id: str, at_s: float, body: bytes, secrets: Sequence[bytes]
) -> Mapping[str, str]:
    """The three headers of a message that is sent at ``at_s``."""
    timestamp = str(int(at_s))
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    digests = (hmac.digest(secret, signed, hashlib.sha256) for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(
            f"v1,{base64.b64encode(digest).decode()}" for digest in digests
        ),
    }
