"""``fleet status``: the fleet at a glance."""

from typing import Any

from fleet.cli.client import FleetClient, ServerOption
from fleet.cli.output import JsonOption, console, errors, print_json, print_table
from fleet.cli.rollout_view import list_row, seconds

__all__ = ["status"]


def status(server: str = ServerOption, as_json: bool = JsonOption) -> None:
    """Show the fleet at a glance: devices, bundles, and the rollouts under way."""
    with errors(as_json), FleetClient(server) as client:
        found = client.get_json("/v1/status")
        active: list[dict[str, Any]] = []
        for state in ("running", "paused", "waiting"):
            active += client.get_json("/v1/rollouts", {"state": state})["rollouts"]
        found = {**found, "server": client.server, "active_rollouts": active}
    if as_json:
        print_json(found)
        return
    ended = ", ".join(
        f"{count} {state.replace('_', ' ')}" for state, count in sorted(found["rollouts"].items())
    )
    rows = [
        ("fleet", f"{found['fleet']} at {found['server']}"),
        ("up", seconds(max(0, int(found["now_s"] - found["started_s"])))),
        ("devices", f"{found['devices']} ({found['online']} connected)"),
        ("bundles", found["bundles"]),
        ("rollouts", ended or "none"),
        ("signed pack", f"version {found['pack_version']}, {found['pack_bytes']} bytes"),
        ("broker", _line(found["broker"])),
        ("reports", _line(found["ingest"])),
    ]
    if found["offline_keys"]:
        count = len(found["offline_keys"])
        rows.append(("keys", f"{count} offline keys still lie in the fleet folder: move them away"))
    if found["webhooks"]:
        told = {**found["webhooks"], "failing": ", ".join(found["webhooks"]["failing"])}
        rows.append(("webhooks", _line(told)))
    print_table("Fleet", ("", ""), rows)
    if active:
        columns = ("id", "bundle", "state", "stage", "started", "reason")
        print_table(
            "Under way",
            columns,
            [list_row(rollout) for rollout in active],
            drop=("started", "stage"),
            whole=("state", "started", "stage"),
        )
    else:
        console.print("no rollout is under way", highlight=False)


def _line(facts: dict[str, Any]) -> str:
    said = {name: value for name, value in facts.items() if value not in ({}, "", None)}
    words = {True: "yes", False: "no"}
    return ", ".join(
        f"{name.replace('_', ' ')} {words[value] if isinstance(value, bool) else value}"
        for name, value in said.items()
    )
