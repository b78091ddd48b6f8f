"""``fleet webhook``: who is told what becomes of rollouts, and whether they can be reached.

Rules kept here: webhooks are configured in fleet.toml, so nothing is changed here; a test that is not
taken ends with 1.
"""

from typing import Annotated, Any

import typer

from fleet.cli.client import FleetClient, ServerOption
from fleet.cli.output import ExitCode, JsonOption, errors, print_json, print_table, say
from fleet.cli.rollout_view import ago, seconds

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Tell other programs what becomes of rollouts; [[webhook]] in fleet.toml says whom.",
)


@app.command("list")
def list_webhooks(server: str = ServerOption, as_json: bool = JsonOption) -> None:
    """List webhooks with what waits for each, and its last error."""
    with errors(as_json), FleetClient(server) as client:
        found = client.get_json("/v1/webhooks")
        now_s = client.get_json("/v1/status")["now_s"]
    if as_json:
        print_json(found)
        return
    print_table(
        "Webhooks",
        ("name", "url", "delivered", "pending", "given up", "last error"),
        [_row(one, now_s) for one in found["webhooks"]],
        empty="none; add [[webhook]] to fleet.toml and start the fleet manager again",
        drop=("url",),
        whole=("name", "pending", "given up"),
    )


@app.command("test")
def send_test(
    name: Annotated[
        str, typer.Argument(help="Name of the webhook, as `fleet webhook list` shows.")
    ],
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Send a signed test event now. When it is taken, what waits is sent as well."""
    with errors(as_json), FleetClient(server) as client:
        answer = client.post_json(f"/v1/webhooks/{name}/test")
    if as_json:
        print_json(answer)
    elif answer["taken"]:
        say(f"{name}: taken with status {answer['status']} in {answer['took_ms']:g} ms")
    else:
        say(f"{name}: not taken: {answer['error']}", style="red")
    if not answer["taken"]:
        raise typer.Exit(ExitCode.FAILED)


def _row(one: dict[str, Any], now_s: float) -> tuple[object, ...]:
    delivered = str(one["delivered"])
    if one["delivered_s"] is not None:
        delivered += f", {ago(one['delivered_s'], now_s)}"
    pending = str(one["pending"])
    error = one["last_error"]
    if error:
        pending += f", next try in {seconds(max(0, int(one['next_try_s'] - now_s)))}"
        error = f"{error} ({one['failures']} in a row)"
    return (one["name"], one["url"], delivered, pending, one["given_up"], error)
