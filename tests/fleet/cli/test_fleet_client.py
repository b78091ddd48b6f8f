"""The client: where it finds the fleet manager, and what it makes of every kind of answer."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

import fleet.errors
from fleet.cli.client import DEFAULT_SERVER, FleetClient, server_address
from fleet.errors import (
    ConfigError,
    FleetError,
    NotFoundError,
    RefusedError,
    RequestError,
    ServerError,
)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No variable set, and an empty current folder."""
    monkeypatch.delenv("MUSTER_SERVER", raising=False)
    monkeypatch.delenv("MUSTER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_file(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(text)


def test_the_address_by_precedence(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server_address() == DEFAULT_SERVER
    run_file(nowhere / "muster-fleet", '{"http": "http://127.0.0.1:1111"}')
    assert server_address() == "http://127.0.0.1:1111"
    run_file(nowhere / "other", '{"http": "127.0.0.1:2222"}')
    monkeypatch.setenv("MUSTER_HOME", str(nowhere / "other"))
    assert server_address() == "http://127.0.0.1:2222"
    monkeypatch.setenv("MUSTER_SERVER", "http://localhost:3333")
    assert server_address() == "http://localhost:3333"
    assert server_address("[::1]:4444") == "http://[::1]:4444"


@pytest.mark.parametrize("text", ["{}", "[]", '{"http": 7}'])
def test_a_run_file_without_an_address(nowhere: Path, text: str) -> None:
    run_file(nowhere / "muster-fleet", text)
    assert server_address() == DEFAULT_SERVER


def test_a_broken_run_file_is_named(nowhere: Path) -> None:
    run_file(nowhere / "muster-fleet", "{")
    with pytest.raises(ConfigError, match=r"muster-fleet/run\.json cannot be read"):
        server_address()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("https://127.0.0.1:1/path", "no address of a fleet manager"),
        ("https://ada@127.0.0.1:1", "no address of a fleet manager"),
        ("ftp://127.0.0.1", "no address of a fleet manager"),
        ("http://127.0.0.1:x", "is no address"),
        ("http://127.0.0.1:99999", "is no address"),
        ("http://127.0.0.1/path", "no address of a fleet manager"),
        ("http://example.org:8470", "not a loopback address"),
        ("10.0.0.1:8470", "not a loopback address"),
        ("//", "no address of a fleet manager"),
    ],
)
def test_addresses_that_are_refused(nowhere: Path, given: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        server_address(given)
    assert says in str(caught.value)
    assert "--server" in str(caught.value)


class Answers(BaseHTTPRequestHandler):
    """Answers with what the test put there."""

    status: ClassVar[int] = 200
    body: ClassVar[bytes] = b"{}"
    seen: ClassVar[list[tuple[str, str, bytes]]] = []

    def _answer(self) -> None:
        length = int(self.headers.get("content-length", 0))
        self.seen.append((self.command, self.path, self.rfile.read(length)))
        self.send_response(self.status)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815 -- the names are the library's

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def answers() -> Iterator[tuple[type[Answers], FleetClient]]:
    class Own(Answers):
        seen: ClassVar[list[tuple[str, str, bytes]]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with FleetClient(f"http://127.0.0.1:{server.server_port}") as client:
        yield Own, client
    server.shutdown()
    server.server_close()


def test_requests(answers: tuple[type[Answers], FleetClient]) -> None:
    own, client = answers
    own.body = b'{"a": 1}'
    assert client.get_json("/v1/x", {"limit": 3}) == {"a": 1}
    assert client.post_json("/v1/x", {"b": 2}) == {"a": 1}
    assert client.get_bytes("/v1/x") == b'{"a": 1}'
    client.put_bytes("/v1/x", b"raw")
    assert [(method, path) for method, path, _ in own.seen] == [
        ("GET", "/v1/x?limit=3"), ("POST", "/v1/x"), ("GET", "/v1/x"), ("PUT", "/v1/x"),
    ]  # fmt: skip
    assert json.loads(own.seen[1][2]) == {"b": 2}
    assert own.seen[3][2] == b"raw"


@pytest.mark.parametrize("name", fleet.errors.__all__)
def test_an_error_of_ours_is_the_same_here(
    answers: tuple[type[Answers], FleetClient], name: str
) -> None:
    own, client = answers
    own.status, own.body = 400, json.dumps({"error": name, "message": "what happened"}).encode()
    with pytest.raises(FleetError, match="what happened") as caught:
        client.get_json("/v1/x")
    assert type(caught.value).__name__ == name


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        (404, {"error": "NotFoundError", "message": "no such"}, NotFoundError, "no such"),
        (400, {"error": "ManifestError", "message": "bad name"}, RefusedError, "bad name"),
        (422, {"detail": [{"msg": "field required"}]}, RequestError, "field required"),
        (500, {"error": "KeyError", "message": "x"}, ServerError, "x"),
        (500, {"error": "__doc__", "message": "x"}, ServerError, "x"),
        (404, {"detail": "Not Found"}, NotFoundError, "is that a fleet manager of this version"),
        (502, None, ServerError, "GET /v1/x was answered with status 502"),
        (409, [], fleet.errors.ConflictError, "status 409"),
    ],
)
def test_other_errors_by_status(
    answers: tuple[type[Answers], FleetClient],
    status: int,
    body: object,
    kind: type[FleetError],
    says: str,
) -> None:
    own, client = answers
    own.status = status
    own.body = b"<html>" if body is None else json.dumps(body).encode()
    with pytest.raises(kind) as caught:
        client.get_json("/v1/x")
    assert says in str(caught.value)


def test_an_answer_that_is_no_json(answers: tuple[type[Answers], FleetClient]) -> None:
    own, client = answers
    own.body = b"hello"
    with pytest.raises(ServerError, match="is no JSON"):
        client.get_json("/v1/x")


def test_an_endless_message_is_cut(answers: tuple[type[Answers], FleetClient]) -> None:
    own, client = answers
    own.status, own.body = 400, json.dumps({"error": "x", "message": "m" * 100_000}).encode()
    with pytest.raises(RefusedError) as caught:
        client.get_json("/v1/x")
    assert len(str(caught.value)) == 4000


def test_nobody_listens() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    port = server.server_port
    server.server_close()
    with FleetClient(f"127.0.0.1:{port}") as client, pytest.raises(ServerError) as caught:
        client.get_json("/v1/status")
    message = str(caught.value)
    assert f"no fleet manager at http://127.0.0.1:{port}" in message
    assert "is `fleet serve` running?" in message
    assert "--server" in message


def test_a_proxy_is_not_asked(
    answers: tuple[type[Answers], FleetClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = answers
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with FleetClient(client.server) as fresh:
        assert fresh.get_json("/v1/x") == {}
