"""The CLI's way to the fleet manager's HTTP API.

Rules kept here: an answer that is an error becomes the same error class here as on the server, so that a command ends
with the same message and exit code wherever the check ran; a server that does not answer says how to start one; and
what is said beyond this machine, the token above all, is encrypted.
"""

import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx
import typer

import fleet.errors
from agent.errors import ConfigError as AgentConfigError
from agent.trust.loopback import require_loopback
from fleet.cli.credentials import ca_for, read_run_file, token_for
from fleet.errors import (
    ConfigError,
    ConflictError,
    FleetError,
    ForbiddenError,
    NotFoundError,
    RefusedError,
    RequestError,
    ServerError,
    TooManyError,
    UnauthenticatedError,
)

__all__ = ["DEFAULT_SERVER", "FleetClient", "ServerOption", "server_address"]

DEFAULT_SERVER: Final = "http://127.0.0.1:8470"
CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 60.0
_ERRNO: Final = re.compile(r"^\[Errno -?\d+\] ")  # of interest to nobody who reads a sentence
_UNTRUSTED: Final = "CERTIFICATE_VERIFY_FAILED"
MAX_MESSAGE_CHARS: Final = 4000  # of an error the server sends: it is printed, so it is bounded

_BY_STATUS: Final[Mapping[int, type[FleetError]]] = {
    400: RefusedError,
    401: UnauthenticatedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    413: RequestError,
    422: RequestError,
    429: TooManyError,
}

ServerOption = typer.Option(
    "",
    "--server",
    help="Address of the fleet manager; by default $MUSTER_SERVER, else the one that runs in "
    f"$MUSTER_HOME or ./muster-fleet, else {DEFAULT_SERVER}.",
    show_default=False,
)


def server_address(given: str = "") -> str:
    """The address to speak to: ``given``, else $MUSTER_SERVER, else run.json of the fleet folder, else the default.

    Raises:
        ConfigError: the address is none, or http to another machine.
    """
    if given:
        return _checked(given, "--server")
    if from_environment := os.environ.get("MUSTER_SERVER", ""):
        return _checked(from_environment, "$MUSTER_SERVER")
    run_file = Path(os.environ.get("MUSTER_HOME") or "muster-fleet") / "run.json"
    if from_file := read_run_file(run_file).get("http", ""):
        return _checked(from_file, str(run_file))
    return DEFAULT_SERVER


class FleetClient:
    """Requests to one fleet manager. Use it as a context manager.

    Every method raises ServerError when there is no answer, and otherwise the error the server names in its answer.
    ``token`` "": the one that ``fleet.cli.credentials`` finds.
    """

    def __init__(self, server: str = "", token: str = "") -> None:
        self.server = server_address(server)
        shown = token or token_for(self.server)
        self._http = httpx.Client(
            base_url=self.server,
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=False,  # a proxy has no business between two processes of one machine
            verify=_trusted(self.server),
            headers=_bearer(shown) if shown else {},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def get_json(self, path: str, params: Mapping[str, str | int] | None = None) -> Any:
        """GET ``path`` (for example ``/v1/devices``) and parse the answer."""
        return _parsed(self._request("GET", path, params=dict(params or {})), path)

    def post_json(self, path: str, body: object = None) -> Any:
        """POST ``body`` as JSON and parse the answer."""
        return _parsed(self._request("POST", path, json={} if body is None else body), path)

    def get_bytes(self, path: str) -> bytes:
        """GET ``path`` and return the body as it is."""
        return self._request("GET", path).content

    def put_bytes(self, path: str, data: bytes) -> None:
        """PUT ``data`` as a raw body."""
        self._request(
            "PUT", path, content=data, headers={"content-type": "application/octet-stream"}
        )

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TimeoutException as error:
            raise ServerError(
                f"the fleet manager at {self.server} did not answer {method} {path} in time: "
                "look at its log, then try again"
            ) from error
        except httpx.ConnectError as error:
            if _UNTRUSTED in str(error):
                raise ServerError(
                    f"the certificate of {self.server} is not one to trust ({_ERRNO.sub('', str(error))}): say what "
                    "signs it with --ca, the file pki/server-ca.pem of the fleet folder"
                ) from error
            raise ServerError(
                f"no fleet manager at {self.server} ({_ERRNO.sub('', str(error))}): is `fleet serve` running? "
                "Start it, or say where it is with --server"
            ) from error
        except httpx.HTTPError as error:
            raise ServerError(
                f"the connection to the fleet manager at {self.server} broke during {method} {path} "
                f"({type(error).__name__}: {error}): try again"
            ) from error
        if response.is_success:
            return response
        raise _error_of(response, f"{method} {path}")


def _checked(address: str, source: str) -> str:
    text = address if "//" in address else f"http://{address}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(
            f"{source} = {address!r} is no address ({error}): use {DEFAULT_SERVER}"
        ) from error
    known = parts.scheme in {"http", "https"}
    if not known or not host or parts.path.strip("/") or parts.query or parts.username:
        raise ConfigError(
            f"{source} = {address!r} is no address of a fleet manager: use one like {DEFAULT_SERVER}"
        )
    shown = f"[{host}]" if ":" in host else host
    place = shown + (f":{port}" if port is not None else "")
    if parts.scheme == "http":
        try:
            require_loopback(host, source)
        except AgentConfigError as error:
            raise ConfigError(
                f"{source} = {address!r} is not a loopback address, and http would show your token to the network: "
                f"use https://{place}"
            ) from error
    return f"{parts.scheme}://{place}"


def _trusted(server: str) -> ssl.SSLContext:
    """Raises ConfigError: the certificates to trust cannot be read."""
    if server.startswith("http://"):
        # A context that trusts nobody, for reading the system's takes 20 ms a command.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca = ca_for(server)
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"--ca {ca} has no certificates that can be read: {error}") from error


def _bearer(token: str) -> dict[str, str]:
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("the token has characters that no token has: copy it again")
    return {"authorization": f"Bearer {token}"}


def _parsed(response: httpx.Response, path: str) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise ServerError(
            f"the answer to {path} from {response.url.netloc.decode()} is no JSON: is that a fleet manager of this "
            "version? Check --server"
        ) from error


def _error_of(response: httpx.Response, what: str) -> FleetError:
    try:
        body = response.json()
    except ValueError:
        body = None
    name, message = "", ""
    if isinstance(body, dict):
        name = str(body.get("error", ""))
        message = str(body.get("message", "") or body.get("detail", ""))
    by_status = _BY_STATUS.get(response.status_code, ServerError)
    named = getattr(fleet.errors, name, None) if name in fleet.errors.__all__ else None
    kind: type[FleetError] = named if named is not None else by_status
    if not message or (by_status is NotFoundError and not name):
        message = (
            f"{what} was answered with status {response.status_code} {response.reason_phrase}: is that a fleet "
            "manager of this version? Check --server"
        )
    return kind(message[:MAX_MESSAGE_CHARS])
