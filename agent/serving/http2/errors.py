"""What a peer can do wrong, by what it loses: its connection, a stream, or only a call."""

from enum import IntEnum

from agent.runtime.errors import RequestError
from agent.serving.status import Code

__all__ = ["CallRefusedError", "ConnectionBrokenError", "ErrorCode", "StreamBrokenError"]


class ErrorCode(IntEnum):
    """RFC 9113, section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB


class ConnectionBrokenError(RequestError):
    """A connection error: the connection ends with GOAWAY and this code."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class StreamBrokenError(RequestError):
    """A stream error: the stream ends with RST_STREAM and this code."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class CallRefusedError(RequestError):
    """A call that cannot be carried: it is answered with this status of gRPC's."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
