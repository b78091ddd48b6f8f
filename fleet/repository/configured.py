"""Which keys the configuration names for the roles that the fleet manager signs itself."""

from collections.abc import Mapping
from pathlib import Path

from fleet.config import KeysConfig
from fleet.home import Home
from fleet.repository.keyring import OnlineKeys
from fleet.repository.signers import Secrets

__all__ = ["online_keys"]


def online_keys(
    home: Home, config: KeysConfig, first: Mapping[str, str] | None = None
) -> OnlineKeys:
    """Where the fleet manager finds its keys.

    Args:
        home: the fleet folder; relative paths start there.
        config: the section ``[keys]``.
        first: by role, a key to try before the configured one.
    """
    configured = {
        "rollout": config.rollout,
        "snapshot": config.snapshot,
        "timestamp": config.timestamp,
    }
    uris = {
        role: tuple(one for one in ((first or {}).get(role, ""), uri) if one)
        for role, uri in configured.items()
    }
    secret = Path(home.path / config.secret_file) if config.secret_file else None
    return OnlineKeys(uris, Secrets(file=secret))
