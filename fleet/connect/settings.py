"""The settings of one webhook, ``[[webhook]]`` in fleet.toml, and what they may be.

Rules kept here: what leaves this machine is encrypted; a secret is in a file of its own, in no URL.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import agent.errors
from agent.trust.loopback import require_loopback
from fleet.connect.event_types import EVENT_TYPES
from fleet.errors import ConfigError

__all__ = ["WebhookConfig", "check_webhooks", "is_local"]

MAX_WEBHOOKS: Final = 16
MAX_URL_CHARS: Final = 2000
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")


def _doc(default: Any, text: str) -> Any:
    return field(default=default, metadata={"doc": text})


@dataclass(frozen=True, slots=True)
class WebhookConfig:
    """Who is told."""

    name: str = _doc("chat", "what it is called here: a-z, 0-9, '.', '_' and '-'")
    url: str = _doc(
        "https://chat.example.com/hooks/muster",
        "where events are posted; https, or http on this machine",
    )
    secret_file: str = _doc(
        "keys/chat.secret",
        "file with the secret that signs events, below the fleet's folder: whsec_ and 24 to 64 bytes "
        "in base64. Two lines while a secret is changed",
    )
    events: tuple[str, ...] = _doc((), f"which it is told, all without: {', '.join(EVENT_TYPES)}")
    timeout_s: float = _doc(10.0, "how long it has to answer")
    link: str = _doc(
        "", "base of the links in events; without, the address of the API on this machine"
    )


def check_webhooks(webhooks: Sequence[WebhookConfig]) -> None:
    """Raises ConfigError: names the webhook, the key, and what would be right."""
    if len(webhooks) > MAX_WEBHOOKS:
        raise ConfigError(f"there are {len(webhooks)} [[webhook]]: at most {MAX_WEBHOOKS} are told")
    seen: set[str] = set()
    for number, one in enumerate(webhooks, 1):
        where = f"[[webhook]] {number}"
        if not _NAME.fullmatch(one.name):
            raise ConfigError(
                f"{where} name = {one.name!r:.80} is not allowed: use up to 40 of a-z, 0-9, '.', '_' "
                "and '-', starting with a letter or digit"
            )
        if one.name in seen:
            raise ConfigError(f"{where} name = {one.name!r} is taken by another: give it its own")
        seen.add(one.name)
        _check_url(f"{where} url", one.url)
        if one.link:
            _check_url(f"{where} link", one.link)
        if not one.secret_file:
            raise ConfigError(f"{where} has no secret_file: events are always signed")
        _check_events(where, one.events)
        if not 0.5 <= one.timeout_s <= 30:  # also refuses NaN
            raise ConfigError(f"{where} timeout_s = {one.timeout_s:g} must lie between 0.5 and 30")


def is_local(url: str) -> bool:
    """Whether the host of an address is this machine, by its number or as ``localhost``."""
    try:
        require_loopback(urlsplit(url).hostname or "", "url")
    except (ValueError, agent.errors.ConfigError):
        return False
    return True


def _check_url(what: str, url: str) -> None:
    try:
        parts: SplitResult | None = urlsplit(url)
        assert parts is not None
        known = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not match, a port that is no number
        parts, known = None, False
    if parts is None or not known or not url.isprintable() or " " in url:
        raise ConfigError(
            f"{what} = {url[:80]!r} is no address: write one like https://chat.example.com/hooks/muster"
        )
    if len(url) > MAX_URL_CHARS:
        raise ConfigError(f"{what} has more than {MAX_URL_CHARS} characters")
    if parts.username or parts.password:
        raise ConfigError(f"{what} has a name or a password in it: events are signed, leave it out")
    if parts.scheme == "http" and not is_local(url):
        raise ConfigError(f"{what} = {url[:80]!r} would leave this machine unencrypted: use https")


def _check_events(where: str, events: Sequence[str]) -> None:
    for name in events:
        if name not in EVENT_TYPES:
            near = difflib.get_close_matches(name, EVENT_TYPES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(EVENT_TYPES)}"
            raise ConfigError(f"{where} events has {name!r:.60}, which is no event; {hint}")
