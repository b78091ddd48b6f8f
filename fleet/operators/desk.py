"""The desk of a running fleet manager: who is let in, and what is written down about it.

Rules kept here: a token is looked up at every request, so that a revocation counts at once; whoever fails too often
waits, and nobody else with them: a token that was good a moment ago is still looked up; refused attempts are written
down as far as the log can bear, and how many were not is said.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from fleet.errors import FleetError, TooManyError, UnauthenticatedError
from fleet.operators import audit_log, tokens
from fleet.operators.attempts import Allowance, Attempts, Budget
from fleet.operators.call import Call
from fleet.operators.chain import Entry
from fleet.operators.roles import LOCAL, NOBODY, Caller
from fleet.operators.secret import digest_of
from fleet.store.engine import Store
from fleet.store.writer import Writer

__all__ = ["DeskLimits", "Operators"]

_LOG = logging.getLogger(__name__)
_SCHEME: Final = "bearer"
NOTE_USE_EVERY_S: Final = 60.0
MAX_RECENT: Final = 1000


@dataclass(frozen=True, slots=True)
class DeskLimits:
    """Logins that fail, of one address and of all; refusals that are written down, of strangers and of callers."""

    each: Allowance = field(default_factory=lambda: Allowance(10, 6.0))
    together: Allowance = field(default_factory=lambda: Allowance(100, 0.6))
    strangers_written: Allowance = field(default_factory=lambda: Allowance(20, 60.0))
    callers_written: Allowance = field(default_factory=lambda: Allowance(200, 6.0))


class Operators:
    """Authenticates people and their tools. ``head_file`` has the head of the audit log; ``local_token`` is good on
    this machine alone."""

    def __init__(  # noqa: PLR0913 -- the clocks are two
        self,
        store: Store,
        writer: Writer,
        head_file: Path,
        local_token: str,
        *,
        now_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
        limits: DeskLimits | None = None,
    ) -> None:
        limits = limits or DeskLimits()
        self._store, self._writer, self._head_file = store, writer, head_file
        self._now_s, self._monotonic_s = now_s, monotonic_s
        self._attempts = Attempts(limits.each, limits.together)
        self._strangers = Budget(limits.strangers_written)
        self._callers = Budget(limits.callers_written)
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._head_lock = threading.Lock()
        self._local_digest = digest_of(local_token)

    def call(self, operation: str, about: str) -> Call:
        """A request of somebody who is not known yet."""
        return Call(NOBODY, operation, about, self._now_s)

    async def admit(self, authorization: str, address: str) -> Caller:
        """Who sends this ``Authorization`` header from this address.

        Raises:
            UnauthenticatedError: no token, or none that is accepted.
            TooManyError: this address, or everybody together, failed too often.
        """
        scheme, _, token = authorization.strip().partition(" ")
        if scheme.lower() != _SCHEME or not token:
            raise UnauthenticatedError(
                "this needs a token: send `Authorization: Bearer TOKEN`. `fleet` takes it from --token, $MUSTER_TOKEN, "
                "run.json of the fleet folder ($MUSTER_HOME) or ~/.config/muster/token; `fleet token create` makes one"
            )
        token = token.strip()
        shown = hashlib.sha256(token.encode()).hexdigest()
        if hmac.compare_digest(shown, self._local_digest) and _is_here(address):
            return LOCAL
        wait_s = self._attempts.wait_s(address, self._monotonic_s())
        if wait_s > 0 and shown not in self._recent:
            raise TooManyError(
                f"too many attempts with tokens that are not accepted: try again in {math.ceil(wait_s)} s",
                retry_after_s=wait_s,
            )
        try:
            known = await asyncio.to_thread(self._find, digest_of(token))
        except UnauthenticatedError:
            self._recent.pop(shown, None)
            self._attempts.failed(address, self._monotonic_s())
            raise
        self._remember(shown)
        await self._note_use(known)
        return known.caller

    def _find(self, digest: str) -> tokens.Known:
        with self._store.read() as connection:
            return tokens.find(connection, digest, self._now_s())

    def _remember(self, digest: str) -> None:
        self._recent[digest] = None
        self._recent.move_to_end(digest)
        if len(self._recent) > MAX_RECENT:
            self._recent.popitem(last=False)

    async def _note_use(self, known: tokens.Known) -> None:
        now_s = self._now_s()
        if known.last_used_s is None or now_s - known.last_used_s >= NOTE_USE_EVERY_S:
            token_id = known.caller.token_id
            await self._writer.run(lambda connection: tokens.used(connection, token_id, now_s))

    async def note(self, entry: Entry) -> None:
        """Write an entry in a transaction of its own.

        Raises:
            ServerError: the database refused.
        """
        await self._writer.run(lambda connection: audit_log.append(connection, entry))

    async def note_refused(self, entry: Entry) -> None:
        """Write down a refused attempt, unless there are too many of them, and keep the head.

        Never raises: it was refused anyway.
        """
        budget = self._strangers if entry.token_id == NOBODY.token_id else self._callers
        if not budget.take(self._monotonic_s()):
            return
        if budget.left_out:
            entry = replace(
                entry,
                reason=f"{entry.reason} ({budget.left_out} more before it are not written down)",
            )
        budget.left_out = 0
        try:
            await self.note(entry)
        except FleetError as error:
            _LOG.error("a refused attempt is not in the audit log: %s", error)
            return
        await self.keep_head()

    async def keep_head(self) -> None:
        """Bring the file with the head up to the database. What stands in the way is logged: the log tells the rest."""
        try:
            await asyncio.to_thread(self._keep_head)
        except FleetError as error:
            _LOG.error("the audit log: %s", error)

    def _keep_head(self) -> None:
        with self._head_lock, self._store.read() as connection:
            audit_log.keep_head(connection, self._head_file)

    async def tokens_there(self) -> int:
        """How many tokens are good now."""

        def count() -> int:
            with self._store.read() as connection:
                return tokens.good_tokens(connection, self._now_s())

        return await asyncio.to_thread(count)


def _is_here(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
