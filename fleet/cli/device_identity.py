"""``fleet device token|accept|reject|revoke``: who is let into the fleet, and who is not any more."""

import re
from typing import Annotated, Any, Final

import typer

from fleet.cli.client import FleetClient, ServerOption
from fleet.cli.output import JsonOption, console, errors, print_json, print_table, say
from fleet.cli.rollout_view import when

__all__ = ["identity_rows", "print_identity_events", "register"]

_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_Device = Annotated[str, typer.Argument(help="Id of the device.")]
_Reason = Annotated[str, typer.Option("--reason", help="Why, for those who ask later.")]

_tokens = typer.Typer(no_args_is_help=True, help="Tokens with which devices enrol.")


def register(app: typer.Typer) -> None:
    """Add these commands to ``fleet device``."""
    app.add_typer(_tokens, name="token")
    app.command()(accept)
    app.command()(reject)
    app.command()(revoke)


@_tokens.command("create")
def create_token(
    device: _Device,
    device_class: Annotated[str, typer.Option("--class", help="Class of the device.")],
    ttl: Annotated[str, typer.Option("--ttl", help="How long it is good: 30m, 12h, 1d ...")] = "1d",
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="LABEL=VALUE that the device has, whatever it says."),
    ] = None,
    server: str = ServerOption,
    as_json: bool = JsonOption,
) -> None:
    """Make a one-time token for one device. It is shown once; run `fleet-agent enroll` there with it."""
    labels = dict(_label(text) for text in label or [])
    body = {"device_class": device_class, "labels": labels, "ttl_s": _seconds(ttl)}
    with errors(as_json), FleetClient(server) as client:
        made = client.post_json(f"/v1/devices/{device}/token", body)
    if as_json:
        print_json(made)
        return
    console.print(made["token"], markup=False, highlight=False, soft_wrap=True)
    say(
        f"Good once, for {device} of class {device_class}, until {when(made['expires_s'])}. On the device: "
        "fleet-agent enroll --config FILE --server HOST:PORT --token TOKEN",
        style="dim",
    )


def accept(
    device: _Device, reason: _Reason = "", server: str = ServerOption, as_json: bool = JsonOption
) -> None:
    """Let a device in that is pending or quarantined."""
    _decide("accept", device, reason, server, as_json)


def reject(
    device: _Device, reason: _Reason = "", server: str = ServerOption, as_json: bool = JsonOption
) -> None:
    """Turn a pending device away."""
    _decide("reject", device, reason, server, as_json)


def revoke(
    device: _Device, reason: _Reason = "", server: str = ServerOption, as_json: bool = JsonOption
) -> None:
    """End a device's identity at once: certificates, tokens, calls under way. It goes on serving what it has."""
    _decide("revoke", device, reason, server, as_json)


def _decide(what: str, device: str, reason: str, server: str, as_json: bool) -> None:
    with errors(as_json), FleetClient(server) as client:
        answer = client.post_json(f"/v1/devices/{device}/{what}", {"reason": reason})
    if as_json:
        print_json(answer)
    else:
        say(f"{device} is {answer['standing']}")


def identity_rows(identity: dict[str, Any]) -> list[tuple[str, object]]:
    """For the table of one device: standing, certificate, expiry."""
    why = f": {identity['reason']}" if identity["reason"] else ""
    rows: list[tuple[str, object]] = [("standing", identity["standing"] + why)]
    certificate = identity["certificate"]
    if certificate:
        rows += [
            ("certificate", f"{certificate['serial']} ({certificate['state']})"),
            ("expires", when(certificate["not_after_s"])),
        ]
    return rows


def print_identity_events(identity: dict[str, Any]) -> None:
    """What became of a device's identity; nothing for one that never had any."""
    rows = [(when(one["at_s"]), one["event"], one["reason"]) for one in identity["events"]]
    if rows:
        print_table("Identity", ("when", "what", "reason"), rows, whole=("when",))


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise typer.BadParameter(f"{text!r} is not LABEL=VALUE", param_hint="--label")
    return key, value


def _seconds(text: str) -> float:
    found = _SPAN.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no time: write 30m, 12h or 1d", param_hint="--ttl")
    return float(found[1]) * _UNITS_S[found[2]]
