"""The roots of the fleet manager's errors, by whose fault it is.

A message says what happened, to which thing, and what to do. Errors do not log, print or exit.
"""

__all__ = [
    "ConfigError",
    "ConflictError",
    "FleetError",
    "ForbiddenError",
    "NotFoundError",
    "RefusedError",
    "RequestError",
    "ServerError",
    "TooManyError",
    "UnauthenticatedError",
]


class FleetError(Exception):
    """Root of everything the fleet manager raises on purpose."""


class ConfigError(FleetError):
    """The operator's: configuration, flag or fleet folder is wrong (exit code 2)."""


class RequestError(FleetError):
    """The caller's: a request or file cannot be understood (HTTP 422, exit code 2)."""


class NotFoundError(FleetError):
    """The caller's: no such device, bundle or rollout (HTTP 404, exit code 1)."""


class ConflictError(FleetError):
    """The caller's: what is asked does not fit the present state (HTTP 409, exit code 1)."""


class RefusedError(FleetError):
    """A check said no: a bundle, signature or plan is not acceptable (HTTP 400, exit code 3)."""


class UnauthenticatedError(FleetError):
    """The caller's: no token, or none that is accepted (HTTP 401, exit code 1)."""


class ForbiddenError(FleetError):
    """The caller's: the token's role or scope is not enough (HTTP 403, exit code 1)."""


class TooManyError(FleetError):
    """The caller's: too many attempts in vain; try again after ``retry_after_s`` (HTTP 429, exit code 1)."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ServerError(FleetError):
    """Ours or the machine's: fleet manager not reachable, disk full, broker gone (HTTP 500, exit code 1)."""
