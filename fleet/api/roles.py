"""HTTP: the roles that people sign: what is published of them, and the next version, signed elsewhere."""

import json

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from fleet.api.bundles import decoded
from fleet.api.models import RoleRequest, RoleVersions, TakenRole
from fleet.api.publish import take_over_role
from fleet.api.services import Services

__all__ = ["router"]

router = APIRouter(prefix="/v1/repository/roles", tags=["keys"])


@router.get("")
def get_roles(request: Request) -> RoleVersions:
    """Every root, and the version of each role."""
    repository = _services(request).repository
    roots = [json.loads(raw) for raw in repository.roots()]
    return RoleVersions(roots=roots, versions=repository.roles())


@router.get("/{role}")
def get_role(request: Request, role: str) -> Response:
    """The newest metadata of a role that people sign, as it is served to devices."""
    raw = _services(request).repository.role_metadata(role)
    return Response(raw, media_type="application/json")


@router.post("/{role}")
async def post_role(request: Request, role: str, body: RoleRequest) -> TakenRole:
    """Publish the next version of a role, signed by enough of its keys. Repeating it changes nothing."""
    services = _services(request)
    companions = {
        name: decoded(raw, f"companion {name[:64]}") for name, raw in body.companions.items()
    }
    manifests = [decoded(raw, "manifest") for raw in body.manifests]
    attestations = [decoded(raw, "attestation") for raw in body.attestations]
    raw = decoded(body.metadata, "metadata")
    taken = await run_in_threadpool(
        take_over_role, services, role, raw, companions, manifests, attestations
    )
    if taken.changed:
        await services.publish()
    return TakenRole(role=taken.role, version=taken.version, changed=taken.changed)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services
