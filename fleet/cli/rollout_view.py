"""How a rollout looks to a person: tables; the page that is watched is in ``watch_view``."""

from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fleet.cli.output import console, print_table, say

__all__ = [
    "STATE_STYLE",
    "ago",
    "entry_row",
    "failed_table",
    "list_row",
    "print_audit",
    "print_plan",
    "seconds",
    "share",
    "status_view",
    "when",
    "when_short",
]

STATE_STYLE: Final = {
    "promoted": "green",
    "rolled_back": "red",
    "aborted": "yellow",
    "superseded": "yellow",
    "paused": "yellow",
    "waiting": "yellow",
    "running": "cyan",
}


def when(at_s: float) -> str:
    """Server time, UTC, for people."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def when_short(at_s: float) -> str:
    """The same without the year, for long tables."""
    return when(at_s)[5:]


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
        rollout["reason"].partition("; ")[0],  # `rollout status` tells the rest
    )


def entry_row(entry: dict[str, Any]) -> tuple[object, ...]:
    return (
        when_short(entry["at_s"]),
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
    say(
        f"{spec['bundle']} to {plan['matching']} devices ({plan['reachable']} reachable now"
        f"{', with ' + selector if selector else ''}), at least {seconds(plan['shortest_s'])}"
    )
    rows = []
    for number, stage in enumerate(plan["stages"], 1):
        named = ", ".join(stage["sample"])
        more = stage["added"] - len(stage["sample"])
        approval = spec["stages"][number - 1].get("approval", False)
        rows.append(
            (
                number,
                stage["words"] + (", once approved" if approval else ""),
                seconds(stage["bake_s"]),
                stage["devices"],
                _effects(stage["effects"]),
                f"{named} and {more} more" if more > 0 else named,
            )
        )
    columns = ("stage", "share", "bakes", "devices", "sees from", "new in it")
    print_table("Stages", columns, rows, drop=("sees from",))
    held = plan["held_back"]
    if held["devices"]:
        say(
            f"held back to compare with, until the last stage has baked: {held['devices']} devices "
            f"({held['percent_bp'] / 100:g} %), then the rest"
        )
    _print_bytes(plan["bytes"])
    _print_unfit(plan["unfit"])
    for text in plan["warnings"]:
        say(f"warning: {text}", style="yellow")
    for text in plan["problems"]:
        say(f"problem: {text}", style="red")


def _effects(effects: dict[str, float | None] | None) -> str:
    """The smallest change a stage can be expected to see, of the metric it sees best."""
    if effects is None:
        return "unknown: no baseline"
    known = {name: factor for name, factor in effects.items() if factor is not None}
    if not known:
        return "nothing"
    name = min(known, key=known.__getitem__)
    return f"{known[name]:.2f}x {name}"


def _print_bytes(found: dict[str, Any] | None) -> None:
    if found is None:
        say("bytes on the wire: unknown, the manifest is not here")
        return
    parts = [
        f"{fetch['devices']} {_serving(fetch['bundle'])} fetch {_size(fetch['each_bytes'])} each"
        for fetch in found["fetches"]
    ]
    say(f"bytes on the wire: {_size(found['total_bytes'])} ({'; '.join(parts)})")


def _serving(bundle: str) -> str:
    """Which devices those are that serve this bundle; "" for none that is known."""
    return f"devices on {bundle}" if bundle else "devices without a known bundle"


def _size(count: int) -> str:
    """``1536`` as ``1.5 KiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


def _print_unfit(unfit: list[dict[str, Any]]) -> None:
    if not unfit:
        return
    rows = [
        (
            met["devices"],
            "left out" if met["left_out"] else "may fail",
            met["text"],
            ", ".join(met["sample"]) + (", ..." if met["devices"] > len(met["sample"]) else ""),
        )
        for met in unfit
    ]
    print_table("Devices that cannot take it", ("devices", "", "why", "for example"), rows)


def print_audit(audit: dict[str, Any]) -> None:
    """Whether what was decided comes out the same when it is decided again."""
    checked = [audit["trail"], *audit["starts"], *audit["looks"], *audit["decisions"]]
    missing = sum(one["how"] == "missing" for one in checked)
    said = (
        f"made again from their evidence: {len(audit['starts'])} beginnings of stages, {len(audit['looks'])} looks and "
        f"{len(audit['decisions'])} decisions of the controller"
    )
    if missing:
        said += f", {missing} of which have too little evidence left"
    say(f"{said}: {'equal' if audit['equal'] else 'NOT equal'}")
    for one in checked:
        for difference in one["differences"]:
            say(f"{when(one['at_s'])} {one['what']}: {difference}", style="red")


def status_view(found: dict[str, Any]) -> RenderableType:
    """One rollout: headline, stages, arms, failed devices."""
    state = found["state"]
    head = Text.assemble(
        (f"{found['id']} ", "bold"),
        (state.replace("_", " "), STATE_STYLE.get(state, "")),
        f"  {found['bundle']}  started {ago(found['created_s'], found['now_s'])}",
    )
    parts: list[RenderableType] = [head, Text(found["reason"]), _stages(found), *_arms(found)]
    if found["failed_devices"]:
        is_back = state == "rolled_back"
        parts.append(
            failed_table(
                found["failed_devices"],
                "Devices that failed or went back" if is_back else "Failed devices",
            )
        )
    return Group(*parts)


def _stages(found: dict[str, Any]) -> Text:
    """All stages in a line or two: on a small terminal the arms below matter more."""
    line = Text("stages: ")
    for stage in found["stage_list"]:
        state = stage["state"].replace("_", " ")
        is_current = stage["state"] == "current"
        if is_current:
            state += f" since {seconds(max(0, int(found['now_s'] - found['stage_started_s'])))}"
        if stage["state"] == "next" and not stage["approved"]:
            state = "needs approval"
        text = f"{stage['words']} for {seconds(stage['bake_s'])} ({state})"
        line.append(" → " if stage["stage"] else "")
        line.append(text, style="bold" if is_current else "")
    held = found["held_back"]
    if held["state"] != "none":
        line.append(f" → the rest, {held['percent_bp'] / 100:g} % ({held['state']})")
    if found["stopped"]:
        line.append(f"\nstopped: {', '.join(found['stopped'])}", style="red")
    return line


_DEVICES: Final = ("targeted", "reachable", "installed", "reported", "failed")
_RATES: Final = {
    "errors": "error_rate",
    "over objective": "over_latency_rate",
    "outside contract": "output_violation_rate",
}
ONE_TABLE_WIDTH: Final = 132  # columns from which on devices and requests fit side by side


def _arms(found: dict[str, Any]) -> list[Table]:
    """Canary and control: one table where it fits, else one of devices and one of requests."""
    devices: list[tuple[str, ...]] = []
    requests: list[tuple[str, ...]] = []
    for name in ("canary", "control"):
        arm = found["arms"][name]
        devices.append((name, *(str(arm.get(count, "–")) for count in _DEVICES)))
        rates = (share(arm[key]) for key in _RATES.values())
        requests.append((str(arm.get("requests", "–")), *rates))
    title, counts, rates_of = (
        "Devices, since the stage began",
        ("", *_DEVICES),
        ("requests", *_RATES),
    )
    if console.width >= ONE_TABLE_WIDTH:
        both = [one + other for one, other in zip(devices, requests, strict=True)]
        return [_figures(title, (*counts, *rates_of), both)]
    named = [(one[0], *other) for one, other in zip(devices, requests, strict=True)]
    return [
        _figures(title, counts, devices),
        _figures("Requests, since the stage began", ("", *rates_of), named),
    ]


def _figures(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


MAX_FAILED_SHOWN: Final = 10


def failed_table(devices: list[dict[str, str]], title: str, most: int = MAX_FAILED_SHOWN) -> Table:
    """Devices that failed, up to ``most`` of them, with how and why."""
    table = Table("device", "how", "reason", title=title, title_justify="left")
    for device in devices[:most]:
        table.add_row(
            Text(device["device_id"]),
            device["standing"],
            Text(device["reason"] or device["reason_code"]),
        )
    if len(devices) > most:
        table.add_row(f"… and {len(devices) - most} more", "", "")
    return table
