"""Refusals of the protocol's front ends that have nothing to do with a tensor."""

from agent.runtime.errors import RequestError

__all__ = [
    "CallerGoneError",
    "FleetDecidesError",
    "MalformedMessageError",
    "OverloadError",
    "WireError",
]


class FleetDecidesError(RequestError):
    """An application asked to load or unload a model."""


class OverloadError(RequestError):
    """More requests or bytes are under way than the server takes."""


class CallerGoneError(RequestError):
    """The caller's time was over before the run began."""


class MalformedMessageError(RequestError):
    """The bytes of a gRPC request are no message of its method."""


class WireError(RequestError):
    """An HTTP request that is none of the protocol's; ``status`` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
