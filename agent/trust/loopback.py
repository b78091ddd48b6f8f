"""Until devices have identities, nothing listens beyond this machine, and nothing connects beyond it."""

import ipaddress

from agent.errors import ConfigError

__all__ = ["require_loopback"]


def require_loopback(host: str, what: str) -> str:
    """Return ``host`` when it is a loopback address or ``localhost``.

    Raises:
        ConfigError: it is anything else; the message names ``what`` (for example ``[grpc] listen``).
    """
    if host == "localhost":
        return host
    try:
        if ipaddress.ip_address(host.strip("[]")).is_loopback:
            return host
    except ValueError:
        pass  # a name: it may point anywhere, so it is refused like a foreign address
    raise ConfigError(
        f"{what} = {host!r} is not a loopback address. Connections are not authenticated yet, so Muster stays on "
        f"this machine: use 127.0.0.1, ::1 or localhost."
    )
