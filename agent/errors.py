"""The roots of the agent's errors, by whose fault it is.

A message says what happened, to which thing, and what to do. Errors do not log, print or exit.
Packages below add their own in their ``errors.py``, always under one of these roots.
"""

__all__ = ["AgentError", "BundleError", "ConfigError", "DeviceError", "LinkError", "TrustError"]


class AgentError(Exception):
    """Root of everything the agent raises on purpose."""


class BundleError(AgentError):
    """The publisher's: a bundle is wrong (file, contract, golden case, model)."""


class TrustError(AgentError):
    """The fleet's or an attacker's: signed metadata or a directive is not acceptable."""


class DeviceError(AgentError):
    """The device's: disk full, memory short, state unreadable, child process died."""


class ConfigError(AgentError):
    """The operator's: a configuration file or a flag is wrong."""


class LinkError(AgentError):
    """The network's or the server's: broker or fleet manager not reachable or not answering."""
