"""What the load generator's words come to, and what it says of a real server."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks import load
from benchmarks.load import NoGenerator, measure, outcome, require_generator
from benchmarks.wire import Target, ask_once

SAID = """finished in 2.00s, 2.00 req/s, 1.33MB/s
requests: 5 total, 5 started, {done} done, {succeeded} succeeded, 0 failed, 0 errored, 0 timeout
status codes: 4 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 2.66MB (2787480) total, 376.86KB (385900) headers (space savings 47.37%), 2.17MB ({data}) data
"""
LOG = "10\t200\t1000\n20\t200\t3000\n30\t200\t2000\n40\t200\t4000\n"


def said(done: int, succeeded: int, data: int) -> str:
    return SAID.format(done=done, succeeded=succeeded, data=data)


def test_rate_and_percentiles_are_of_the_log() -> None:
    found = outcome(said(4, 4, 400), LOG, 2.0, 100)
    assert (found.per_s, found.p50_ms, found.p99_ms) == (2.0, 3.0, 4.0)
    assert (found.requests, found.failed) == (4, 0)


def test_what_is_not_200_has_failed() -> None:
    found = outcome(said(5, 4, 400), LOG + "50\t500\t9000\n", 2.0, 100)
    assert (found.p99_ms, found.failed) == (4.0, 1)


def test_an_answer_of_200_without_its_message_has_failed() -> None:
    assert outcome(said(4, 4, 300), LOG, 2.0, 100).failed == 1


def test_words_that_are_not_understood_are_said() -> None:
    with pytest.raises(RuntimeError, match="something unknown: requests: none"):
        outcome("requests: none", LOG, 2.0, 100)


def test_a_missing_generator_is_said_with_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(NoGenerator, match="nghttp2-client"):
        require_generator()


class _Third(BaseHTTPRequestHandler):
    """Answers what it got; every third time with an error, once it was asked three times."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together
    asked = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).asked += 1
        bad = type(self).asked > 3 and type(self).asked % 3 == 0
        self.send_response(500 if bad else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def server() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Third) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield serving.server_port
        serving.shutdown()
        thread.join()


@pytest.mark.skipif(not shutil.which(load.GENERATOR), reason="h2load (nghttp2) is not installed")
def test_a_real_run_counts_failures_of_a_real_server(tmp_path: Path) -> None:
    with server() as port:
        target = Target("rest", port, b"12345", "/")
        assert ask_once(target) == b"12345"
        found = measure(target, 2, 0.1, 0.3, tmp_path)
    assert found.requests > 20
    assert 0.25 < found.failed / found.requests < 0.4
    assert 0 < found.p50_ms <= found.p99_ms
