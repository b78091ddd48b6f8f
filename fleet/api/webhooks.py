"""Webhooks over HTTP, under /v1/webhooks: who is told, how far each has got, and a test of one."""

from typing import Any

from fastapi import APIRouter, Request

from fleet.api.services import Services
from fleet.connect.webhooks import Webhooks

__all__ = ["router"]

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


def _webhooks(request: Request) -> Webhooks:
    services: Services = request.app.state.services
    return services.webhooks


@router.get("")
async def webhooks(request: Request) -> dict[str, Any]:
    """Every webhook with what waits for it, and its last error. Secrets are never shown."""
    return {"webhooks": await _webhooks(request).listed()}


@router.post("/{name}/test")
async def test(request: Request, name: str) -> dict[str, Any]:
    """Send a signed test event now, and say what was answered.

    When it is taken, what waits for this webhook is sent as well.
    """
    answer = await _webhooks(request).test(name)
    return {
        "name": name,
        "taken": not answer.error,
        "status": answer.status,
        "error": answer.error,
        "took_ms": round(answer.took_ms, 1),
    }
