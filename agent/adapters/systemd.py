"""What systemd wants to hear: ready, status, still alive, stopping. Nothing happens when systemd does not ask.

Rules kept here:
- One datagram a message to the socket in ``NOTIFY_SOCKET`` (sd_notify(3)); a failure is never the agent's failure.
- The variables are taken out of the environment, so that child processes cannot speak for the agent.
"""

import os
import socket
from collections.abc import MutableMapping
from typing import Final

__all__ = ["Notifier"]

_MAX_STATUS_CHARS: Final = 200


class Notifier:
    """Speaks to the service manager that started this process, if there is one."""

    __slots__ = ("_address", "_watchdog_s")

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        variables = os.environ if environment is None else environment
        address = variables.pop("NOTIFY_SOCKET", "")
        interval = variables.pop("WATCHDOG_USEC", "")
        pid = variables.pop("WATCHDOG_PID", "")
        if address.startswith("@"):
            address = "\0" + address[1:]
        self._address = address
        ours = not pid or pid == str(os.getpid())
        self._watchdog_s = int(interval) / 1e6 if ours and interval.isdigit() else 0.0

    @property
    def watchdog_s(self) -> float:
        """How often, at least, ``alive`` must be called; 0 when nobody watches."""
        return self._watchdog_s / 2

    def ready(self, status: str = "") -> None:
        self._send(f"READY=1\n{_status(status)}")

    def status(self, status: str) -> None:
        self._send(_status(status))

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(message.encode(), self._address)
        except OSError:
            # The service manager is gone or busy; the watchdog decides what that means, not the agent.
            return


def _status(status: str) -> str:
    line = " ".join(status.split())[:_MAX_STATUS_CHARS]
    return f"STATUS={line}" if line else ""
