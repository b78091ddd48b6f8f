"""The addresses of external checks: where they may lead, and how they are shown. Pure.

Rules kept here: what would be asked beyond this machine is asked over TLS, unless the operator says otherwise in the
check itself; what a URL carries for its receiver alone is shown to nobody.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

from fleet.connect.settings import is_local
from fleet.errors import RequestError
from fleet.rollout.spec import Check

__all__ = ["require_tls", "shown_url"]


def require_tls(checks: Sequence[Check]) -> None:
    """Refuse a new rollout whose checks would be asked beyond this machine in plain http unknowingly.

    Asked when a rollout is planned and not when it is read: those that are under way stay readable.

    Raises:
        RequestError: a check's address is http beyond loopback, and ``plain_http`` is not set.
    """
    for number, check in enumerate(checks, 1):
        if urlsplit(check.url).scheme == "https" or check.plain_http or is_local(check.url):
            continue
        raise RequestError(
            f"check {number}: {shown_url(check.url)} would be asked beyond this machine in plain http, and anybody on "
            "the way could answer pass: write https://, or plain_http = true in the check if the network is trusted"
        )


def shown_url(url: str) -> str:
    """Host and path: name, password and query are for the URL alone."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"
