"""``fleet device``: who is in the fleet, and how each device is doing."""

from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from fleet.cli.client import FleetClient, ServerOption
from fleet.cli.device_identity import identity_rows, print_identity_events, register
from fleet.cli.output import JsonOption, console, errors, print_json, print_table
from fleet.cli.rollout_view import ago, share, when, when_short

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The devices of the fleet.")
register(app)

PAGE: Final = 1000
SHOWN: Final = 20  # windows and events shown of one device


@app.command("list")
def list_devices(
    label: Annotated[
        list[str] | None, typer.Option("--label", help="LABEL=VALUE a device must have.")
    ] = None,
    device_class: Annotated[str, typer.Option("--class", help="Only this device class.")] = "",
    offline: Annotated[bool, typer.Option("--offline", help="Only devices not connected.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many.")] = 1000,
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """List the devices that have reported."""
    with errors(as_json), FleetClient(server) as client:
        wanted = dict(_label(text) for text in label or [])
        now_s = client.get_json("/v1/status")["now_s"]
        found: list[dict[str, Any]] = []
        for device in _every_device(client):
            matches = all(device["labels"].get(key) == value for key, value in wanted.items())
            if device_class and device["device_class"] != device_class:
                matches = False
            if matches and not (offline and device["online"]):
                found.append(device)
                if len(found) == limit:
                    break
    if as_json:
        print_json({"devices": found})
        return
    print_table(
        "Devices",
        ("id", "class", "hardware", "labels", "serves", "connected", "heard of"),
        [_row(device, now_s) for device in found],
        empty="none; start one with `fleet-agent run --config FILE`",
        drop=("hardware", "class", "labels"),
        whole=("id", "serves", "heard of"),
    )


@app.command()
def show(
    device: Annotated[str, typer.Argument(help="Id of the device.")],
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Show one device: what it is, what it serves, and its last deployments, events and windows."""
    with errors(as_json), FleetClient(server) as client:
        found = client.get_json(f"/v1/devices/{device}")
    if as_json:
        print_json(found)
        return
    facts = ("device_class", "hardware", "operating_system", "agent_version", "onnxruntime_version")
    rows: list[tuple[str, object]] = [(name.replace("_", " "), found[name]) for name in facts]
    rows += [
        ("labels", _labels(found["labels"])),
        ("memory", f"{found['memory_bytes'] / 2**20:,.0f} MiB"),
        ("disk free", f"{found['disk_free_bytes'] / 2**20:,.0f} MiB"),
        ("connected", "yes" if found["online"] else "no"),
        ("first heard of", when(found["first_seen_s"])),
        ("last heard of", when(found["last_seen_s"])),
        *_trust_rows(found["trust"]),
        *identity_rows(found["identity"]),
    ]
    print_table(f"Device {found['id']}", ("", ""), rows)
    _print_models(found["models"])
    print_identity_events(found["identity"])
    _print_events(found["events"])
    _print_windows(found["windows"])


def _every_device(client: FleetClient) -> Sequence[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        page = client.get_json("/v1/devices", {"after": after, "limit": PAGE})
        found += page["devices"]
        after = page.get("next", "")
        if not after:
            return found


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise typer.BadParameter(f"{text!r} is not LABEL=VALUE", param_hint="--label")
    return key, value


def _labels(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _row(device: dict[str, Any], now_s: float) -> tuple[object, ...]:
    serves = ", ".join(f"{one['model']} {one['version']}" for one in device["models"])
    return (
        device["id"],
        device["device_class"],
        device["hardware"],
        _labels(device["labels"]),
        serves or "nothing",
        "yes" if device["online"] else "no",
        ago(device["last_seen_s"], now_s),
    )


def _trust_rows(trust: dict[str, Any]) -> list[tuple[str, object]]:
    """What the device refused of the signed metadata, and what it cannot do about a bundle."""
    rows: list[tuple[str, object]] = []
    if trust.get("refusal_code"):
        state = "refusing since" if trust["refusing"] else "accepted again; last refused"
        how_often = f"{trust['refused']} since its start"
        rows = [
            ("signed metadata", f"{state} {when(trust['refused_s'])} ({how_often})"),
            (f"refused: {trust['refusal_code']}", trust["refusal"]),
        ]
    return [*rows, *(("notice", text) for text in trust.get("notices", ()))]


def _print_models(models: Sequence[dict[str, Any]]) -> None:
    rows = [
        (one["model"], one["version"], one["manifest_sha256"][:12], one["rollout_id"], when(one["updated_s"]))
        for one in models
    ]  # fmt: skip
    print_table("Serves", ("model", "version", "manifest", "rollout", "since"), rows, "nothing yet")


def _print_events(events: Sequence[dict[str, Any]]) -> None:
    rows = [
        (when_short(one["at_ms"] / 1000), one["rollout_id"], one["bundle"], one["phase"], one["outcome"],
         one["reason"] or one["reason_code"])
        for one in events[:SHOWN]
    ]  # fmt: skip
    columns = ("when", "rollout", "bundle", "phase", "outcome", "reason")
    print_table("Last deployment steps", columns, rows, drop=("bundle",), whole=("when",))


def _print_windows(windows: Sequence[dict[str, Any]]) -> None:
    rows = []
    for one in windows[:SHOWN]:
        requests = one["requests"]
        rates = [
            share(one[name] / requests if requests else None)
            for name in ("failures", "over_objective", "output_violations")
        ]
        span_s = (one["end_ms"] - one["start_ms"]) / 1000
        rows.append(
            (
                when_short(one["end_ms"] / 1000),
                f"{one['model']} {one['version']}",
                f"{span_s:.0f}",
                requests,
                *rates,
                _feedback(one),
            )
        )
    columns = (
        "until",
        "served",
        "seconds",
        "requests",
        "errors",
        "over objective",
        "outside contract",
        "feedback",
    )
    print_table("Last windows", columns, rows, drop=("seconds",), whole=("until", "served"))
    notices = dict.fromkeys(text for one in windows[:SHOWN] for text in one["notices"])
    if notices:
        print_table("Notices", ("on the device",), [(text,) for text in notices])
    if not windows:
        console.print("(a device reports a window for each model it serves)", style="dim")


def _feedback(window: dict[str, Any]) -> str:
    """How often applications found the answers right, or how far off they were."""
    count, unknown = window["feedback_count"], window["feedback_unknown"]
    parts = []
    if count:
        correct, error = window["feedback_correct"], window["feedback_abs_error_sum"]
        # A model answers with labels, which have no error, or with numbers.
        right = f"{correct} of {count} right"
        parts.append(f"off by {error / count:.3g} on average of {count}" if error else right)
    if unknown:
        parts.append(f"{unknown} unknown")
    return ", ".join(parts)
