"""Asking external checks, beside the controller's ticks.

Rules kept here: a check that is slow delays neither the controller nor another check; each is asked
once at a time, with a whole time limit; whatever goes wrong is an answer too: HOLD, with its reason;
nothing is asked openly beyond this machine that the operator did not allow, whoever stored the rollout and
wherever a name leads.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import httpx

from fleet.connect.settings import is_local
from fleet.errors import FleetError
from fleet.rollout.check_addresses import is_open, is_this_machine
from fleet.rollout.check_answers import keep_answer, read_answers
from fleet.rollout.checks import due_checks, parameters, verdict_of
from fleet.rollout.gate import Verdict
from fleet.rollout.record import Rollout
from fleet.rollout.records import running_rollouts
from fleet.rollout.snapshot import CheckAnswer
from fleet.rollout.spec import Check
from fleet.store.engine import Store
from fleet.store.writer import Writer

__all__ = ["CheckLimits", "CheckRunner"]

_LOG = logging.getLogger(__name__)
_MAX_ERROR_CHARS: Final = 200
_OPEN: Final = (
    "it is not asked: its address is plain http beyond this machine, where anybody on the way could answer. Start the "
    "rollout again with https://, or with plain_http = true in the check"
)
_LED_AWAY: Final = "its address led beyond this machine in plain http, so its answer does not count"


@dataclass(frozen=True, slots=True)
class CheckLimits:
    """``poll_s``: how often to look what is due. ``at_once``: most requests under way."""

    poll_s: float = 1.0
    at_once: int = 32
    answer_bytes: int = 64 * 1024


class CheckRunner:
    """Asks the checks of every running rollout; ``wake`` lets the controller look at an answer."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        wake: Callable[[], None] = lambda: None,
        *,
        now_s: Callable[[], float] = time.time,
        limits: CheckLimits | None = None,
    ) -> None:
        self._store = store
        self._writer = writer
        self._wake = wake
        self._now_s = now_s
        self._limits = limits or CheckLimits()
        self._under_way: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """Ask until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self.ask_due(tasks)
                await asyncio.sleep(self._limits.poll_s)

    async def ask_due(self, tasks: asyncio.TaskGroup) -> int:
        """Begin to ask what is due and not being asked; how many that are."""
        begun = 0
        for rollout, check in await asyncio.to_thread(self._due):
            key = (rollout.id, check.url)
            if key in self._under_way or len(self._under_way) >= self._limits.at_once:
                continue
            self._under_way.add(key)
            tasks.create_task(self._ask(rollout, check))
            begun += 1
        return begun

    def _due(self) -> list[tuple[Rollout, Check]]:
        now_s = self._now_s()
        with self._store.read() as connection:
            return [
                (rollout, check)
                for rollout in running_rollouts(connection)
                for check in due_checks(rollout, read_answers(connection, rollout), now_s)
            ]

    async def _ask(self, rollout: Rollout, check: Check) -> None:
        try:
            asked_s = self._now_s()
            verdict, reason = await self._answer(rollout, check)
            answer = CheckAnswer(
                check.url,
                rollout.stage_started_s,
                asked_s,
                self._now_s(),
                str(verdict),
                reason,
            )
            await self._writer.run(lambda connection: keep_answer(connection, rollout, answer))
            self._wake()
        except FleetError as error:
            # The database is busy or full: without an answer the stage holds, and it is asked again.
            _LOG.error("rollout %s: the answer of a check is lost: %s", rollout.id, error)
        finally:
            self._under_way.discard((rollout.id, check.url))

    async def _answer(self, rollout: Rollout, check: Check) -> tuple[Verdict, str]:
        if is_open(check):  # of a rollout from before such were refused
            return Verdict.HOLD, _OPEN
        try:
            async with asyncio.timeout(check.timeout_s):
                return await self._get(rollout, check)
        except TimeoutError:
            return Verdict.HOLD, f"no answer within {check.timeout_s:g} s"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Verdict.HOLD, f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]

    async def _get(self, rollout: Rollout, check: Check) -> tuple[Verdict, str]:
        url = httpx.URL(check.url).copy_merge_params(parameters(rollout))
        body = b""
        async with (
            httpx.AsyncClient(
                timeout=2 * check.timeout_s,  # the limit around the whole comes first
                follow_redirects=False,
                trust_env=not is_local(check.url),
                headers={"accept": "application/json", "user-agent": "muster-checks"},
            ) as client,
            client.stream("GET", url) as response,
        ):
            if not _is_private(check, response):
                return Verdict.HOLD, _LED_AWAY
            async for part in response.aiter_bytes():
                body += part
                if len(body) > self._limits.answer_bytes:
                    most = self._limits.answer_bytes
                    return Verdict.HOLD, f"its answer has more than {most} bytes"
        return verdict_of(response.status_code, body)


def _is_private(check: Check, response: httpx.Response) -> bool:
    """Whether nobody on the way could have answered: over TLS, or on this machine, or so the operator says."""
    if check.plain_http or response.url.scheme == "https":
        return True
    stream = response.extensions.get("network_stream")
    return stream is not None and is_this_machine(stream.get_extra_info("server_addr"))
