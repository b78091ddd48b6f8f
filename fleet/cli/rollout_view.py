"""How a rollout looks to a person: tables, and a live view while it is watched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fleet.cli.output import console, print_table

__all__ = [
    "ago",
    "entry_row",
    "follower",
    "list_row",
    "print_plan",
    "seconds",
    "share",
    "status_view",
    "when",
]

_STATE_STYLE: Final = {
    "promoted": "green",
    "rolled_back": "red",
    "aborted": "yellow",
    "paused": "yellow",
    "running": "cyan",
}


def when(at_s: float) -> str:
    """Server time, UTC, for people."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def seconds(span_s: float) -> str:
    """``90 s`` as ``1m 30s``."""
    whole = int(span_s)
    if whole < 60:
        return f"{span_s:g}s" if span_s < 10 else f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m {rest}s" if rest else f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}m" if minutes else f"{hours}h"


def ago(at_s: float, now_s: float) -> str:
    """``5m 3s ago``."""
    return f"{seconds(max(0, int(now_s - at_s)))} ago"


def share(value: float | None) -> str:
    """A rate as a percentage; "–" when there is nothing to divide."""
    return "–" if value is None else f"{100 * value:.3g} %"


def list_row(rollout: dict[str, Any]) -> tuple[object, ...]:
    return (
        rollout["id"],
        rollout["bundle"],
        rollout["state"].replace("_", " "),
        f"{rollout['stage'] + 1} of {rollout['stages']} ({rollout['percent_bp'] / 100:g} %)",
        when(rollout["created_s"]),
        rollout["reason"],
    )


def entry_row(entry: dict[str, Any]) -> tuple[object, ...]:
    return (
        when(entry["at_s"]),
        entry["actor"],
        entry["action"],
        entry["stage"] + 1,
        entry["verdict"],
        entry["reason"],
    )


def print_plan(plan: dict[str, Any]) -> None:
    """Stages with their devices, and what stands in the way."""
    spec = plan["spec"]
    selector = ", ".join(f"{key}={value}" for key, value in spec["selector"].items())
    console.print(
        f"{spec['bundle']} to {plan['matching']} devices ({plan['reachable']} reachable now"
        f"{', with ' + selector if selector else ''}), at least {seconds(plan['shortest_s'])}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    rows = []
    for number, stage in enumerate(plan["stages"], 1):
        named = ", ".join(stage["sample"])
        more = stage["added"] - len(stage["sample"])
        rows.append(
            (
                number,
                f"{stage['percent_bp'] / 100:g} %",
                seconds(stage["bake_s"]),
                stage["devices"],
                f"{named} and {more} more" if more > 0 else named,
            )
        )
    print_table("Stages", ("stage", "share", "bakes", "devices", "new in it"), rows)
    for text in plan["warnings"]:
        console.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)
    for text in plan["problems"]:
        console.print(f"problem: {text}", style="red", markup=False, soft_wrap=True)


def status_view(found: dict[str, Any]) -> RenderableType:
    """One rollout: headline, stages, arms, failed devices."""
    state = found["state"]
    head = Text.assemble(
        (f"{found['id']} ", "bold"),
        (state.replace("_", " "), _STATE_STYLE.get(state, "")),
        f"  {found['bundle']}  started {ago(found['created_s'], found['now_s'])}",
    )
    parts: list[RenderableType] = [head, Text(found["reason"]), _stages(found), _arms(found)]
    if found["failed_devices"]:
        parts.append(_failed(found["failed_devices"]))
    return Group(*parts)


def _stages(found: dict[str, Any]) -> Table:
    table = Table("stage", "share", "bakes", "state", title="Stages", title_justify="left")
    for stage in found["stage_list"]:
        state = stage["state"].replace("_", " ")
        if stage["state"] == "current":
            state += f", since {seconds(max(0, int(found['now_s'] - found['stage_started_s'])))}"
        table.add_row(
            str(stage["stage"] + 1),
            f"{stage['percent_bp'] / 100:g} %",
            seconds(stage["bake_s"]),
            state,
            style="bold" if stage["state"] == "current" else "",
        )
    return table


def _arms(found: dict[str, Any]) -> Table:
    columns = ("", "targeted", "reachable", "installed", "reported", "failed", "requests")
    rates = ("errors", "over objective", "outside contract")
    table = Table(*columns, *rates, title="Devices, since the stage began", title_justify="left")
    for name in ("canary", "control"):
        arm = found["arms"][name]
        counts = ("targeted", "reachable", "installed", "reported", "failed", "requests")
        table.add_row(
            name,
            *(str(arm.get(count, "–")) for count in counts),
            share(arm["error_rate"]),
            share(arm["over_latency_rate"]),
            share(arm["output_violation_rate"]),
        )
    return table


MAX_FAILED_SHOWN: Final = 10


def _failed(devices: list[dict[str, str]]) -> Table:
    table = Table("device", "how", "reason", title="Failed devices", title_justify="left")
    for device in devices[:MAX_FAILED_SHOWN]:
        table.add_row(
            Text(device["device_id"]),
            device["standing"],
            Text(device["reason"] or device["reason_code"]),
        )
    if len(devices) > MAX_FAILED_SHOWN:
        table.add_row(f"… and {len(devices) - MAX_FAILED_SHOWN} more", "", "")
    return table


@contextmanager
def follower(*, quiet: bool = False) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Something that shows a rollout again and again: in place on a terminal, else a line a change."""
    if quiet:
        yield lambda _found: None
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda found: live.update(status_view(found), refresh=True)
    else:
        yield _line_printer()


def _line_printer() -> Callable[[dict[str, Any]], None]:
    told: list[tuple[Any, ...]] = []

    def show(found: dict[str, Any]) -> None:
        now = (found["state"], found["stage"], found["reason"])
        if told != [now]:
            told[:] = [now]
            percent = f"{found['percent_bp'] / 100:g} %"
            console.print(
                f"{when(found['now_s'])} {found['id']} {found['state']} at {percent}: {found['reason']}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    return show
