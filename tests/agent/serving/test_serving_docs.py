"""docs/serving.md says what is true: its commands are run, its C program is compiled and run."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agent.adapters.model_server import OtherFronts, ProcessModelServer
from agent.config import ServingSection
from agent.serving.rest.app import STATUSES
from agent.serving.service import CODES, MAX_STREAMS
from tests.support.onnx_models import scale_bundle

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
LIMIT_S = 60.0


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[ProcessModelServer]:
    fronts = OtherFronts(http="127.0.0.1:0", http_unix=str(tmp_path / "http.sock"))
    async with ProcessModelServer("127.0.0.1:0", fronts=fronts) as started:
        made = scale_bundle(tmp_path / "bundle")
        await started.load(str(made.path), made.sha256)
        await started.activate("scale", made.sha256)
        yield started


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/serving.md has no block of {language}"
    return found.group(1)


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_the_commands_say_what_the_page_says(
    server: ProcessModelServer, tmp_path: Path
) -> None:
    steps = re.findall(r"^\$ (.*)\n(.*)$", block("console"), re.MULTILINE)
    assert len(steps) == 5
    for command, expected in steps:
        here = command.replace("127.0.0.1:8474", server.http_address)
        here = here.replace("/run/muster-agent/http.sock", str(tmp_path / "http.sock"))
        assert await asyncio.to_thread(run, ["sh", "-c", here]) == expected


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
async def test_the_c_program_gets_its_answer(server: ProcessModelServer, tmp_path: Path) -> None:
    source, program = tmp_path / "ask.c", tmp_path / "ask"
    source.write_text(block("c"), encoding="utf-8")
    flags = ["-Wall", "-Wextra", "-Werror", "-std=gnu11"]
    await asyncio.to_thread(run, ["gcc", *flags, "-o", str(program), str(source)])
    said = await asyncio.to_thread(run, [str(program), str(tmp_path / "http.sock")])
    assert said == "2 4 6 8\n"


def test_the_defaults_are_the_configurations() -> None:
    defaults = ServingSection()
    for key, value in (("listen", defaults.listen), ("http", defaults.http)):
        assert f"| `{key}` | `{value}` |" in PAGE


def test_every_error_is_in_the_table() -> None:
    for fault, code in CODES.items():
        assert f"| `{code.name}` | {STATUSES[fault]} |" in PAGE
    assert f"at most {MAX_STREAMS} streams" in PAGE
