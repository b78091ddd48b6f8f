"""What can go wrong while a bundle is loaded and asked, by whose fault it is."""

from agent.errors import AgentError, BundleError

__all__ = [
    "ForbiddenModelError",
    "InferenceError",
    "InputContractError",
    "ModelLoadError",
    "NotReadyError",
    "RequestError",
    "UnknownRequestError",
    "UnknownServableError",
]


class RequestError(AgentError):
    """The caller's: a request to a model is not acceptable."""


class InputContractError(RequestError):
    """An input does not fit the bundle's contract; the message names the tensor, what is expected
    and what came."""


class UnknownServableError(RequestError):
    """There is no such model, or no such version of it, on this device."""


class UnknownRequestError(UnknownServableError):
    """No answer to a request with this id is remembered."""


class NotReadyError(RequestError):
    """The model is known but does not answer: nothing of it is active yet, or the server is
    stopping. ``held``: its next version is being loaded, so waiting helps."""

    def __init__(self, message: str, *, held: bool = False) -> None:
        super().__init__(message)
        self.held = held


class ModelLoadError(BundleError):
    """The bundle's files cannot be made into a running pipeline that keeps the contract."""


class ForbiddenModelError(ModelLoadError):
    """A model file would run or read what no device allows, or is built to exhaust one. No device takes it."""


class InferenceError(BundleError):
    """The model failed on inputs that keep its contract. ``kind`` is one of a small fixed set, for
    counting."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind
