"""The simulator's own errors, under the roots of the fleet manager's (``fleet/errors.py``)."""

from fleet.errors import ConfigError, ServerError

__all__ = ["ScenarioError", "WorldError"]


class ScenarioError(ConfigError):
    """The operator's: a scenario, an address or a flag is wrong (exit code 2)."""


class WorldError(ServerError):
    """The fleet manager's or the machine's: a world cannot be started or kept up (exit code 1)."""
