"""What can be wrong with a bundle project, and with a bundle on its way into the fleet."""

from fleet.errors import RefusedError, RequestError

__all__ = ["BuildRefusedError", "ProjectError"]


class ProjectError(RequestError):
    """``muster.toml`` cannot be understood: a key, a value or a file that it names (exit code 2)."""


class BuildRefusedError(RefusedError):
    """The project is understood, but what it makes would fail on a device (exit code 3)."""
