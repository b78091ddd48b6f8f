"""HTTP: the identities of devices: tokens to enrol with, and what an operator decides about a device."""

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from fleet.api.services import Services
from fleet.errors import ConflictError
from fleet.registry.identities import Identities
from fleet.registry.standing import Happening

__all__ = ["router"]

router = APIRouter(prefix="/v1/devices", tags=["identity"])

DAY_S = 86_400.0


class TokenRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    device_class: str = Field(max_length=40)
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)
    ttl_s: float = DAY_S


class TokenAnswer(BaseModel):
    device_id: str
    device_class: str
    token: str = Field(description="shown here and never again")
    expires_s: float


class Decision(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: str = Field("", max_length=500)


class StandingAnswer(BaseModel):
    device_id: str
    standing: str


def _identities(request: Request) -> Identities:
    services: Services = request.app.state.services
    if services.identities is None:
        raise ConflictError(
            "devices of this fleet show no certificates: run `fleet tls init`, set [grpc] tls = true, and "
            "start the fleet manager again"
        )
    return services.identities


@router.post("/{device_id}/token")
async def create_token(request: Request, device_id: str, body: TokenRequest) -> TokenAnswer:
    """Make a one-time token with which this device enrols. Earlier ones of it are good no more."""
    services: Services = request.app.state.services
    until_s = services.now_s() + body.ttl_s
    token = await _identities(request).create_token(
        device_id, body.device_class, body.labels, body.ttl_s
    )
    return TokenAnswer(
        device_id=device_id,
        device_class=body.device_class,
        token=token.text,
        expires_s=until_s,
    )


@router.post("/{device_id}/accept")
async def accept(request: Request, device_id: str, body: Decision) -> StandingAnswer:
    """Let a device in that waits for it, or that is quarantined."""
    return await _decide(request, device_id, Happening.ACCEPTED, body)


@router.post("/{device_id}/reject")
async def reject(request: Request, device_id: str, body: Decision) -> StandingAnswer:
    """Turn a device away that waits to be let in."""
    return await _decide(request, device_id, Happening.REJECTED, body)


@router.post("/{device_id}/revoke")
async def revoke(request: Request, device_id: str, body: Decision) -> StandingAnswer:
    """End a device's identity: its certificates, its tokens, and its calls under way."""
    return await _decide(request, device_id, Happening.REVOKED, body)


async def _decide(
    request: Request, device_id: str, happening: Happening, body: Decision
) -> StandingAnswer:
    after = await _identities(request).decide(device_id, happening, body.reason)
    return StandingAnswer(device_id=device_id, standing=str(after))
