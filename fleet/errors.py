"""The roots of the fleet manager's errors, by whose fault it is.

A message says what happened, to which thing, and what to do. Errors do not log, print or exit.
"""

__all__ = [
    "ConfigError",
    "ConflictError",
    "FleetError",
    "NotFoundError",
    "RefusedError",
    "RequestError",
    "ServerError",
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


class ServerError(FleetError):
    """Ours or the machine's: fleet manager not reachable, disk full, broker gone (HTTP 500, exit code 1)."""
