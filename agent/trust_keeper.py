"""One task that owns the device's trust state: packs and refreshes in, decisions out.

Rules kept here:
- Verified, then saved, then decided: nothing acts on a state that a power cut could undo.
- A bad pack is counted and logged, never raised. What was verified before a refusal is saved all the same.
- Bounded work: the newest pack replaces an unread older one, one already judged is dropped, and refreshes are
  rationed (``burst`` at once, then one every ``refill_s``), whatever a broker sends.
- Besides packs, everything is fetched over gRPC on every connect and every ``refresh_s``, with jitter, so that a broker
  that withholds a halt is caught.
- Decisions are made again every ``decide_s``, because a speed limit opens with time, and at the moment the metadata
  expires: from then on nothing is begun, tried or swapped in. A device that hears nothing starts nothing.
- A trust store that cannot be read directs nothing, and the device goes on serving. After one that was cut short or
  is an older copy, packs wait until the fleet manager itself has been asked: an old pack cannot use the gap.
- What is refused is kept as a status for the fleet.
"""

import hashlib
import logging
import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from agent.alarm import Alarm
from agent.delivery.offload import Offload, run_to_end
from agent.errors import DeviceError, LinkError, TrustError
from agent.ports import Clock
from agent.trust import (
    BundleRelease,
    CurrentModel,
    Decision,
    DeviceFacts,
    Directive,
    Emergencies,
    RefusedMetadataError,
    TrustState,
    TrustStore,
    World,
    decide_in,
)
from agent.trust.emergency import NO_EMERGENCY
from agent.trust.status import STORE_CODE, TrustStatus, code_of, notices_of

__all__ = ["Refresh", "TrustCounts", "TrustKeeper", "TrustKeeperLimits", "TrustPorts", "TrustView"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrustView:
    """What a verified state says. ``expires_s``: from when on nothing may be started by it any more.

    ``unreadable``: why entries that this agent does not understand are passed over.
    """

    directives: tuple[Directive, ...]
    releases: Mapping[str, BundleRelease]
    expires_s: float
    emergency: Emergencies = NO_EMERGENCY
    unreadable: tuple[str, ...] = ()


class Refresh(Protocol):
    """Verifies newer metadata: from the pack, or (None) from the fleet manager."""

    def __call__(self, state: TrustState, pack: bytes | None) -> Awaitable[TrustState]:
        """Raises RefusedMetadataError, or LinkError when the fleet manager is needed and not reachable."""
        ...


@dataclass(frozen=True, slots=True)
class TrustPorts:
    """What the keeper asks of the world. ``read`` sees only states that ``refresh`` returned.

    ``changed`` is called when the status has news for the fleet.
    """

    store: TrustStore
    refresh: Refresh
    read: Callable[[TrustState], TrustView]
    offload: Offload
    clock: Clock
    changed: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class TrustKeeperLimits:
    refresh_s: float = 4 * 3600.0
    connect_jitter_s: float = 5.0
    decide_s: float = 60.0
    retry_first_s: float = 2.0
    retry_most_s: float = 300.0
    burst: int = 5
    refill_s: float = 5.0


@dataclass(slots=True)
class TrustCounts:
    """Since start."""

    refreshed: int = 0
    refused: int = 0
    unreachable: int = 0
    duplicates: int = 0


class TrustKeeper:
    """Give it packs; it gives decisions to ``desire``."""

    def __init__(
        self,
        ports: TrustPorts,
        facts: DeviceFacts,
        current: Callable[[], Mapping[str, CurrentModel]],
        desire: Callable[[Sequence[Decision]], None],
        limits: TrustKeeperLimits | None = None,
        randomness: random.Random | None = None,
    ) -> None:
        """``current``: where the device stands now, by model."""
        self._ports = ports
        self._clock = ports.clock
        self._facts = facts
        self._current = current
        self._desire = desire
        self._limits = limits or TrustKeeperLimits()
        self._random = randomness or random.Random()  # noqa: S311 (spreads load, guards nothing)
        self._work = Alarm(ports.clock)
        self._pack: bytes | None = None
        self._judged = b""
        self._retry_s = 0.0
        self._failures = 0
        self._tokens = float(self._limits.burst)
        self._filled_s = ports.clock.monotonic_s()
        self._refresh_at_s = ports.clock.monotonic_s()
        self._decide_at_s: float | None = None
        self._state = TrustState()
        self._view: TrustView | None = None
        self._decisions: tuple[Decision, ...] = ()
        self._expiry_said = False
        self._status = TrustStatus()
        self.counts = TrustCounts()

    @property
    def view(self) -> TrustView | None:
        """What the fleet directs; None until the first refresh since start."""
        return self._view

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The latest decisions."""
        return self._decisions

    @property
    def status(self) -> TrustStatus:
        """What the fleet is to be told about the metadata of this device."""
        return self._status

    def offer_pack(self, pack: bytes) -> None:
        """A pack has arrived."""
        if hashlib.sha256(pack).digest() == self._judged:
            self.counts.duplicates += 1
            return
        self._pack = pack
        self._work.set()

    def ask_refresh(self) -> None:
        """A link has connected: look over gRPC what the fleet manager says, soon."""
        soon = self._clock.monotonic_s() + self._random.random() * self._limits.connect_jitter_s
        self._refresh_at_s = min(self._refresh_at_s, soon)
        self._work.set()

    def reconsider(self) -> None:
        """Something on the device has changed: decide again by what is known."""
        self._decide_at_s = self._clock.monotonic_s()
        self._work.set()

    async def run(self) -> None:
        """Work until cancelled."""
        await self._load()
        while True:
            await self._work.wait(self._wait_s())
            await self._work_once()

    async def _load(self) -> None:
        """Read the store; until that succeeds nothing is directed, and the device goes on serving."""
        while True:
            try:
                self._state = await run_to_end(self._ports.offload, self._ports.store.load)
            except DeviceError as error:
                self._refused(STORE_CODE, str(error))
                await self._clock.sleep(self._limits.retry_most_s)
                continue
            if self._state.damage:
                self._refused(STORE_CODE, self._state.damage)
            return

    # --- when -------------------------------------------------------------------------------------

    def _wait_s(self) -> float:
        now = self._clock.monotonic_s()
        due = [max(self._refresh_at_s, self._retry_s)]
        if self._pack is not None and not self._state.damage:
            due.append(max(self._retry_s, now))
        self._refill(now)
        if self._tokens < 1:
            due = [max(min(due), now + (1 - self._tokens) * self._limits.refill_s)]
        if self._decide_at_s is not None:
            due.append(self._decide_at_s)
        return max(min(due) - now, 0.0)

    def _refill(self, now: float) -> None:
        grown = self._tokens + (now - self._filled_s) / self._limits.refill_s
        self._tokens = min(grown, float(self._limits.burst))
        self._filled_s = now

    async def _work_once(self) -> None:
        now = self._clock.monotonic_s()
        self._refill(now)
        # A hair of tolerance: a timer may wake this task a moment before the token is whole.
        if self._tokens >= 0.999 and now >= self._retry_s:
            refresh_due = now >= self._refresh_at_s
            # A pack that cannot be judged yet takes turns with the refresh, which may well go through.
            waits = self._state.damage or (refresh_due and self._failures % 2)
            if self._pack is not None and not waits:
                self._tokens -= 1
                await self._take_pack(self._pack)
            elif refresh_due:
                self._tokens -= 1
                await self._refresh(None)
        if self._decide_at_s is not None and self._clock.monotonic_s() >= self._decide_at_s:
            self._decide()

    # --- what -------------------------------------------------------------------------------------

    async def _take_pack(self, pack: bytes) -> None:
        if await self._refresh(pack):
            self._judged = hashlib.sha256(pack).digest()
            if self._pack is pack:
                self._pack = None

    async def _refresh(self, pack: bytes | None) -> bool:
        """True when the question is settled, False when it has to be asked again."""
        try:
            state = await self._ports.refresh(self._state, pack)
        except TrustError as error:
            self._refused(code_of(error), str(error))
            if isinstance(error, RefusedMetadataError) and error.progress is not None:
                await self._save(error.progress)
            return self._settled(pack, self._limits.retry_most_s)
        except LinkError as error:
            self.counts.unreachable += 1
            log.info("signed metadata waits for the fleet manager: %s", error)
            return self._again()
        if state.damage:
            state = replace(state, damage="")
        if not await self._save(state):
            return self._again()
        self.counts.refreshed += 1
        self._view = self._ports.read(state)
        self._expiry_said = False
        self._set_status(self._status.after_success())
        self._decide()
        return self._settled(pack, self._limits.refresh_s)

    def _refused(self, code: str, text: str) -> None:
        """Count, log and keep a refusal for the fleet."""
        self.counts.refused += 1
        log.warning("%s", text, extra={"reason_code": code})
        self._set_status(self._status.after_refusal(code, text, self._clock.now_s()))

    def _set_status(self, status: TrustStatus) -> None:
        has_news = status.news != self._status.news
        self._status = status
        if has_news:
            self._ports.changed()

    async def _save(self, state: TrustState) -> bool:
        if state == self._state and state.damage == self._state.damage:
            return True
        try:
            await run_to_end(self._ports.offload, self._ports.store.save, state)
        except DeviceError as error:
            self._refused(
                STORE_CODE, f"verified metadata cannot be stored, so it is not acted on: {error}"
            )
            return False
        self._state = state
        return True

    def _settled(self, pack: bytes | None, next_s: float) -> bool:
        self._failures = 0
        self._retry_s = 0.0
        if pack is None:
            wait_s = min(next_s, self._limits.refresh_s) * (0.9 + 0.2 * self._random.random())
            self._refresh_at_s = self._clock.monotonic_s() + wait_s
        return True

    def _again(self) -> bool:
        bound = min(
            self._limits.retry_first_s * 2.0 ** min(self._failures, 30), self._limits.retry_most_s
        )
        self._failures += 1
        wait_s = bound * (0.5 + 0.5 * self._random.random())
        self._retry_s = self._clock.monotonic_s() + wait_s
        return False

    def _decide(self) -> None:
        view = self._view
        if view is None:
            self._decide_at_s = None
            return
        now_s = self._state.trusted_now_s(self._clock.now_s())
        left_s = view.expires_s - now_s
        wait_s = min(self._limits.decide_s, left_s if left_s > 0 else math.inf)
        self._decide_at_s = self._clock.monotonic_s() + wait_s
        if left_s <= 0 and not self._expiry_said:
            self._expiry_said = True
            log.warning("the signed metadata has expired: nothing is started until newer arrives")
        world = World(
            view.releases,
            replace(self._facts, utc_offset_minutes=self._clock.utc_offset_minutes()),
            self._state.floors_for(self._facts.device_class),
            now_s,
            view.emergency,
            view.expires_s,
        )
        decisions = decide_in(world, view.directives, self._current())
        expired = ["expired: nothing is begun by this metadata any more"] if left_s <= 0 else []
        notices = (*notices_of(decisions), *expired, *view.unreadable)
        self._set_status(self._status.with_notices(notices))
        for decision in decisions:
            if decision not in self._decisions:
                directive = decision.directive
                log.info(
                    "%s: %s",
                    decision.verb.value,
                    decision.text,
                    extra={
                        "model": decision.model,
                        "rollout": directive.id if directive else "",
                        "reason_code": decision.reason.value,
                    },
                )
        self._decisions = decisions
        self._desire(decisions)
