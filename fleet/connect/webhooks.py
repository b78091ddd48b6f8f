"""Sending events: one task for each webhook, which takes the next one of the outbox and posts it.

Rules kept here: an event counts as delivered when the webhook has answered 2xx and that is in the
database, in this order, so it may be sent twice and is never lost; a redirect is no delivery;
certificates are verified; of an answer nothing is read but its status; one webhook that is slow or
gone delays no other.
"""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import httpx

from fleet.connect import outbox
from fleet.connect.events import Event, body_of, event_of_test
from fleet.connect.outbox import Pending
from fleet.connect.patience import Patience
from fleet.connect.settings import is_local
from fleet.connect.signature import signed_headers
from fleet.connect.targets import Target
from fleet.errors import FleetError, NotFoundError
from fleet.store.engine import Store
from fleet.store.writer import Writer

__all__ = ["Answer", "Webhooks", "client_for"]

_LOG = logging.getLogger(__name__)
POLL_S: Final = 1.0  # how often a webhook that waits for nothing looks for something new
_BUSY: Final = frozenset({429, 503})  # whose Retry-After is heeded


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one try. ``error`` is "" when the event was taken."""

    status: int
    error: str
    took_ms: float
    asked_s: float = 0.0


class Webhooks:
    """Every webhook of a fleet."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        targets: Sequence[Target],
        *,
        link: Callable[[], str] = lambda: "",
        patience: Patience | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._writer = writer
        self._targets = {target.name: target for target in targets}
        self._link = link
        self._patience = patience or Patience()
        self._now_s = now_s

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(self._targets.values())

    async def register(self) -> None:
        """Make the database know exactly these webhooks. To be called before anything is decided."""
        wanted = {target.name: target.events for target in self._targets.values()}
        await self._writer.run(lambda connection: outbox.register(connection, wanted))

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for target in self._targets.values():
                tasks.create_task(self._deliver(target), name=f"webhook {target.name}")

    async def _deliver(self, target: Target) -> None:
        async with client_for(target) as client:
            while True:
                try:
                    wait_s = await self.step(target.name, client)
                except FleetError as error:
                    # The database is busy or full: the place is where it was, so nothing is lost.
                    _LOG.error("webhook %s: %s", target.name, error)
                    wait_s = POLL_S
                if wait_s > 0:
                    await asyncio.sleep(min(wait_s, POLL_S))

    async def step(self, name: str, client: httpx.AsyncClient) -> float:
        """Try the next event of this webhook, if it is time; seconds until it is worth looking again.

        Raises:
            ServerError: the database refused. NotFoundError: there is no such webhook.
        """
        target = self._target(name)
        pending = await asyncio.to_thread(self._next, name)
        if pending is None:
            return POLL_S
        wait_s = pending.next_try_s - self._now_s()
        if wait_s > 0:
            return wait_s
        answer = await self._post(target, client, pending.message_id, pending.event)
        if not answer.error:
            number = pending.number
            at_s = self._now_s()
            await self._writer.run(lambda c: outbox.delivered(c, name, number, at_s))
            return 0.0
        return await self._failed(target, pending, answer)

    def _next(self, name: str) -> Pending | None:
        with self._store.read() as connection:
            return outbox.next_pending(connection, name)

    async def _failed(self, target: Target, pending: Pending, answer: Answer) -> float:
        times_s = (self._now_s(), answer.asked_s)
        gone = await self._writer.run(
            lambda c: outbox.failed(c, target.name, answer.error, times_s, self._patience)
        )
        if gone:
            _LOG.error("webhook %s: %d events are given up: %s", target.name, gone, answer.error)
        wait_s = self._patience.wait_s(pending.failures + 1, answer.asked_s)
        if pending.failures == 0:  # once: `fleet webhook list` tells the rest
            _LOG.warning("webhook %s: %s; trying again in %g s", target.name, answer.error, wait_s)
        return wait_s

    async def test(self, name: str) -> Answer:
        """Send a test event now. When it is taken, what waits for this webhook goes out as well.

        Raises:
            NotFoundError: there is no such webhook.
        """
        target = self._target(name)
        event = event_of_test(self._now_s(), name)
        async with client_for(target) as client:
            answer = await self._post(target, client, f"msg_{uuid.uuid4().hex}", event)
        if not answer.error:
            await self._writer.run(lambda connection: outbox.try_now(connection, name))
        return answer

    async def listed(self) -> list[dict[str, Any]]:
        """Every webhook: where it goes, what it is told, and how far it has got."""

        def work() -> list[dict[str, Any]]:
            with self._store.read() as connection:
                return [
                    {
                        **asdict(place),
                        "url": _shown(self._targets[place.name].url),
                        "events": list(self._targets[place.name].events),
                    }
                    for place in outbox.places(connection)
                    if place.name in self._targets
                ]

        return await asyncio.to_thread(work)

    def _target(self, name: str) -> Target:
        target = self._targets.get(name)
        if target is None:
            known = ", ".join(self._targets) or "none is configured: see [[webhook]] in fleet.toml"
            raise NotFoundError(f"there is no webhook {name!r:.80}; known: {known}")
        return target

    async def _post(
        self, target: Target, client: httpx.AsyncClient, message_id: str, event: Event
    ) -> Answer:
        payload = body_of(event, target.link or self._link())
        body = json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode()
        headers = {
            "content-type": "application/json",
            "user-agent": "muster-webhooks",
            **signed_headers(message_id, self._now_s(), body, target.secrets),
        }
        began = time.monotonic()
        status, asked_s, error = 0, 0.0, ""
        try:
            async with asyncio.timeout(target.timeout_s):
                sent = client.stream("POST", target.url, content=body, headers=headers)
                async with sent as response:
                    status, asked_s = response.status_code, _asked_s(response)
        except TimeoutError:
            error = f"no answer within {target.timeout_s:g} s"
        except httpx.HTTPError as caught:
            error = f"{type(caught).__name__}: {caught}"
        if not error and not 200 <= status < 300:
            error = f"answered with status {status}"
        return Answer(status, error, (time.monotonic() - began) * 1000, asked_s)


def client_for(target: Target) -> httpx.AsyncClient:
    """How webhooks are spoken to: no redirects, certificates verified."""
    # The limit for the whole try is set around it, and comes first. A proxy of the environment is
    # for what leaves this machine.
    return httpx.AsyncClient(
        timeout=2 * target.timeout_s, follow_redirects=False, trust_env=not is_local(target.url)
    )


def _asked_s(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "")
    return (
        float(text) if response.status_code in _BUSY and text.isascii() and text.isdigit() else 0.0
    )


def _shown(url: str) -> str:
    """An address without its query, which may hold what is nobody's business."""
    return url.partition("?")[0]
