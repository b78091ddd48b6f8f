"""HTTP: the audit log of what operators did, under /v1/audit. Read only."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from fleet.api.services import Services
from fleet.operators import audit_log

__all__ = ["router"]

router = APIRouter(prefix="/v1/audit", tags=["audit"])


@router.get("")
def get_entries(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[int, Query(ge=0)] = 0,
) -> dict[str, Any]:
    """Entries, the newest first; ``before`` is the number of an entry to page on from.

    ``head`` is the newest entry of all, as NUMBER:SHA256: keep it elsewhere, and the log cannot be cut unseen.
    """
    services: Services = request.app.state.services
    with services.store.read() as connection:
        found = audit_log.newest(connection, limit, before)
        head = audit_log.head_of(connection)
    return {"entries": [entry.to_json() for entry in found], "head": str(head)}
