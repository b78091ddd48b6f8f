"""Signing requests as files that a command writes, and what it says of them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fleet.cli.output import print_json, say
from fleet.repository.files import write_durable
from fleet.repository.request import SigningRequest, request_bytes
from fleet.repository.request_rules import needs_of, needs_words

__all__ = ["request_json", "save_request", "tell_request"]


def save_request(request: SigningRequest, path: Path | None) -> Path:
    """Write a request; by default into the folder one is in, under its own name.

    Raises:
        ServerError: it cannot be written.
    """
    target = path or Path(request.file_name)
    needs = [asdict(need) for need in needs_of(request)]
    write_durable(target, request_bytes(request, needs))
    return target


def tell_request(request: SigningRequest, path: Path, as_json: bool) -> None:
    """Say what a new request asks for, and what is to be done with it."""
    if as_json:
        print_json(request_json(request, path))
        return
    say(f"Wrote {path}: {request.role} version {request.version} is to be signed", style="bold")
    for line in request.says:
        say(f"  {line}")
    say(needs_words(needs_of(request)))
    say(
        f"Next, each holder: fleet key sign {path.name} --key KEY. Then: fleet key merge {path.name} ..."
    )


def request_json(request: SigningRequest, path: Path | None) -> dict[str, Any]:
    """A request as programs are told of it."""
    return {
        "request": None if path is None else str(path),
        "fleet": request.chain.fleet,
        "role": request.role,
        "version": request.version,
        "says": list(request.says),
        "needs": [asdict(need) for need in needs_of(request)],
        "expires_s": request.expires_s,
    }
