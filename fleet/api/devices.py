"""HTTP: the devices of the fleet and what they last said."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from fleet.api.models import DeviceDetail, Devices, DeviceView
from fleet.api.services import Services
from fleet.monitor.history import last_events, last_windows, latest_steps
from fleet.registry import get_device, list_devices, models_of
from fleet.registry.enrolment import identity_of

__all__ = ["router"]

router = APIRouter(prefix="/v1/devices", tags=["devices"])


@router.get("")
def get_devices(
    request: Request,
    after: Annotated[str, Query(max_length=40)] = "",
    limit: Annotated[int, Query(ge=1, le=5000)] = 5000,
) -> Devices:
    """Devices by id, with what each says it serves."""
    services: Services = request.app.state.services
    with services.store.read() as connection:
        rows = list_devices(connection, after=after, limit=limit + 1)
        page = rows[:limit]
        models = models_of(connection, [row["id"] for row in page])
    views = [_view(row, models[row["id"]]) for row in page]
    return Devices(devices=views, next=page[-1]["id"] if len(rows) > limit else "")


@router.get("/{device_id}")
def get_one_device(
    request: Request,
    device_id: str,
    events: Annotated[int, Query(ge=0, le=1000)] = 50,
    windows: Annotated[int, Query(ge=0, le=1000)] = 20,
) -> DeviceDetail:
    """One device: inventory, models, its newest step in each rollout, last events and windows."""
    services: Services = request.app.state.services
    with services.store.read() as connection:
        row = get_device(connection, device_id)
        models = models_of(connection, [device_id])[device_id]
        return DeviceDetail(
            **_view(row, models).model_dump(),
            trust=row["trust"],
            deployments=latest_steps(connection, device_id),
            events=last_events(connection, device_id, events),
            windows=last_windows(connection, device_id, windows),
            identity=identity_of(connection, device_id),
        )


def _view(row: dict[str, Any], models: list[dict[str, Any]]) -> DeviceView:
    return DeviceView.model_validate({**row, "models": models})
