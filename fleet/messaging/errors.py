"""What can go wrong between the fleet manager and a broker."""

from fleet.errors import ServerError

__all__ = ["BrokerError"]


class BrokerError(ServerError):
    """A broker cannot be started or reached, refused something, or went away."""
