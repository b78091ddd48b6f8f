"""HTTP: tokens of operators, under /v1/tokens. Made and revoked by admins; a token is shown once."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from fleet.api.door import call_of
from fleet.api.services import Services
from fleet.operators import tokens
from fleet.operators.roles import Role, parse_scope

__all__ = ["router"]

router = APIRouter(prefix="/v1/tokens", tags=["tokens"])


class TokenRequest(BaseModel):
    """A token to be made; ``scope`` restricts an operator to models and device classes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(max_length=64)
    role: Role
    life_s: float = Field(90 * tokens.DAY_S, description="seconds until it expires")
    scope: dict[str, list[Annotated[str, Field(max_length=64)]]] = Field(
        {}, description='for example {"model": ["digits"], "class": ["edge"]}', max_length=2
    )


@router.get("")
def get_tokens(request: Request) -> dict[str, Any]:
    """Every token there ever was: name, role, scope, when it was made, last used and revoked."""
    services: Services = request.app.state.services
    with services.store.read() as connection:
        return {"tokens": list(tokens.list_all(connection, services.now_s()))}


@router.post("", status_code=201)
async def create_token(request: Request, body: TokenRequest) -> dict[str, Any]:
    """Make a token. The answer is the only time that it is shown."""
    services: Services = request.app.state.services
    call = call_of(request)
    call.object = body.name
    wanted = tokens.Wanted(body.name, body.role, body.life_s, parse_scope(body.scope, body.role))

    def work() -> tokens.Made:
        with services.store.begin() as connection:
            made = tokens.create(connection, wanted, call.caller, services.now_s())
            call.record(
                connection,
                f"{made.role}, id {made.id}" + (f", {made.scope}" if str(made.scope) else ""),
            )
            return made

    return (await run_in_threadpool(work)).to_json()


@router.post("/{name}/revoke")
async def revoke_token(request: Request, name: str) -> dict[str, Any]:
    """Take a token back, by its name or id. It counts from the next request on."""
    services: Services = request.app.state.services
    call = call_of(request)
    call.object = name

    def work() -> str:
        with services.store.begin() as connection:
            revoked = tokens.revoke(connection, name, call.caller, services.now_s())
            call.record(connection)
            return revoked

    return {"name": await run_in_threadpool(work)}
