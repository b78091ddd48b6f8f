"""Values of the MQTT client, and the framing of MQTT 5 packets.

Rules kept here: pure functions and frozen values; the codec's own types go no further than
``fleet/messaging/client.py``.
"""

from dataclasses import dataclass
from typing import Final

import mqtt5

__all__ = [
    "ClientLimits",
    "Message",
    "Will",
    "packet_size",
    "reason_text",
    "require_welcome",
    "will_of",
]

_MAX_FIXED_HEADER: Final = 5
_FIRST_PACKETS: Final = (2, 14, 15)  # CONNACK, DISCONNECT, AUTH


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What one client may use."""

    inflight: int = 64  # publishes waiting for the broker's acknowledgement
    queued_messages: int = 1024  # received, not yet taken from messages()
    max_packet_bytes: int = 64 * 1024 + 1024  # a full payload, its topic and its properties
    connect_timeout_s: float = 10.0
    close_timeout_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    payload: bytes
    retain: bool


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes for us when the connection breaks."""

    topic: str
    payload: bytes
    retain: bool = True


def will_of(will: Will | None) -> mqtt5.Will | None:
    """The codec's form of a will."""
    if will is None:
        return None
    return mqtt5.Will(
        will.topic, payload=will.payload, qos=mqtt5.QoS.AT_LEAST_ONCE, retain=will.retain
    )


def reason_text(reason: int) -> str:
    """A reason code in words: ``not authorized``."""
    return str(getattr(reason, "name", reason)).lower().replace("_", " ")


def require_welcome(data: memoryview) -> None:
    """Check that the first byte of the first packet is one a broker may answer CONNECT with.

    Raises:
        ValueError: it is not; whoever sent it may go on for ever and never be a broker.
    """
    if data[0] >> 4 not in _FIRST_PACKETS:
        raise ValueError(f"its answer begins with byte {data[0]:#04x}")


def packet_size(data: memoryview, position: int) -> int | None:
    """Bytes of the packet at ``position``, header included; None when its length is not here yet.

    Raises:
        ValueError: the length field is malformed (MQTT 5, section 1.5.5).
    """
    value = 0
    for index in range(1, _MAX_FIXED_HEADER):
        if position + index >= len(data):
            return None
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * (index - 1))
        if not byte & 0x80:
            return 1 + index + value
    raise ValueError("a malformed packet length")
