"""A verified trust state as the keeper wants to see it, and the real refresh behind it."""

import logging
from collections.abc import Awaitable
from typing import Final

from agent.delivery.offload import Offload, run_to_end
from agent.ports import Clock, MetadataSource
from agent.trust import TrustState
from agent.trust.reading import (
    emergencies,
    expires_s,
    read_directives,
    read_emergencies,
    read_releases,
)
from agent.trust.refresh import TrustRefresher
from agent.trust_keeper import TrustView

__all__ = ["RealRefresh", "read_view"]

log = logging.getLogger(__name__)

_ONLINE_ROLES: Final = ("timestamp.json", "snapshot.json", "rollout.json")


def read_view(state: TrustState) -> TrustView:
    """Directives, releases, emergencies and expiry of a state that a refresh has returned."""
    directives = read_directives(state)
    releases = read_releases(state)
    unreadable = directives.unreadable | releases.unreadable | read_emergencies(state).unreadable
    for path, why in unreadable.items():
        log.warning("%s is passed over: %s", path, why)
    newest_first = sorted(directives.entries.values(), key=lambda entry: (-entry.number, entry.id))
    return TrustView(
        tuple(newest_first),
        releases.entries,
        _expires_s(state),
        emergencies(state),
        tuple(unreadable.values()),
    )


def _expires_s(state: TrustState) -> float:
    """The earliest expiry of the roles that change with a rollout, seconds since the epoch."""
    times = [expires_s(state, name) for name in _ONLINE_ROLES if name in state.files]
    return min(times, default=0.0)


class RealRefresh:
    """Implements trust_keeper.Refresh with the TUF client in a worker thread."""

    def __init__(
        self, refresher: TrustRefresher, source: MetadataSource, clock: Clock, offload: Offload
    ) -> None:
        self._refresher = refresher
        self._source = source
        self._clock = clock
        self._offload = offload

    def __call__(self, state: TrustState, pack: bytes | None) -> Awaitable[TrustState]:
        now_s = self._clock.now_s()
        return run_to_end(self._offload, self._refresher.refresh, state, self._source, pack, now_s)
