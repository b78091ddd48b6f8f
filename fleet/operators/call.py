"""One request of a caller, and what the audit log will say of it."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from fleet.operators import audit_log
from fleet.operators.chain import Entry
from fleet.operators.roles import Caller

__all__ = ["DONE", "FAILED", "REFUSED", "Call"]

DONE = "done"
REFUSED = "refused"
FAILED = "failed"


@dataclass(slots=True)
class Call:
    """``operation`` and ``object`` may be made more exact by the handler, which knows more than the route."""

    caller: Caller
    operation: str
    object: str
    now_s: Callable[[], float]
    is_written: bool = False

    def entry(self, outcome: str, reason: str = "") -> Entry:
        """What the audit log says of it."""
        role = "" if self.caller.role is None else str(self.caller.role)
        return Entry(
            at_ms=int(self.now_s() * 1000),
            token_id=self.caller.token_id,
            name=self.caller.name,
            role=role,
            operation=self.operation,
            object=self.object,
            outcome=outcome,
            reason=reason,
        )

    def record(self, connection: Connection, reason: str = "") -> None:
        """Write that it was done, in the transaction that does it."""
        audit_log.append(connection, self.entry(DONE, reason))
        self.is_written = True
