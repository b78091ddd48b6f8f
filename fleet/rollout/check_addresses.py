"""The addresses of external checks: where they may lead, and how they are shown. Pure.

Rules kept here: what would be asked beyond this machine is asked over TLS, unless the operator says otherwise in the
check itself, and a name is believed to be this machine only when it led there; what a URL carries for its receiver
alone is shown to nobody.
"""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from fleet.connect.settings import is_local
from fleet.errors import RequestError
from fleet.rollout.spec import Check

__all__ = ["is_open", "is_this_machine", "require_tls", "shown_url"]


def require_tls(checks: Sequence[Check]) -> None:
    """Refuse a new rollout whose checks would be asked beyond this machine in plain http unknowingly.

    Asked when a rollout is planned and not when it is read: those that are under way stay readable.

    Raises:
        RequestError: a check's address is http beyond loopback, and ``plain_http`` is not set.
    """
    for number, check in enumerate(checks, 1):
        if not is_open(check):
            continue
        raise RequestError(
            f"check {number}: {shown_url(check.url)} would be asked beyond this machine in plain http, and anybody on "
            "the way could answer pass: write https://, or plain_http = true in the check if the network is trusted"
        )


def is_open(check: Check) -> bool:
    """Whether asking it would leave this machine in plain http without the operator's word for it."""
    is_tls = urlsplit(check.url).scheme == "https"
    return not (is_tls or check.plain_http or is_local(check.url))


def is_this_machine(address: object) -> bool:
    """Whether the far end of a connection, as a socket names it (host first), is loopback."""
    try:
        host = address[0]  # type: ignore[index]
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except (TypeError, IndexError, ValueError):  # no address of a network: nothing is known of it
        return False


def shown_url(url: str) -> str:
    """Host and path: name, password and query are for the URL alone."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"
