"""The command tree: everything is there, loads only when used, and says what is missing."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from fleet.cli import app as app_module
from fleet.cli.app import COMMANDS, Command, app

ROOT = Path(__file__).resolve().parents[3]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_loads_and_has_help(command: Command) -> None:
    result = CliRunner().invoke(app, [command.name, "--help"])
    assert result.exit_code == 0, result.output
    assert "cannot be loaded" not in result.output
    assert "needs the" not in result.output


def test_the_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f" {command.name} " in result.stdout


def test_a_typing_error_is_answered_with_the_nearest_command() -> None:
    result = CliRunner().invoke(app, ["rolout"])
    assert result.exit_code == 2
    assert "Did you mean 'rollout'?" in result.output


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("muster-edge ")


def test_a_command_loads_nothing_of_another() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from fleet.cli.app import app\n"
        "CliRunner().invoke(app, ['rollout', 'list', '--server', '127.0.0.1:1'])\n"
        "heavy = {'sqlalchemy', 'fastapi', 'uvicorn', 'onnx', 'onnxruntime', 'numpy', 'tuf', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = run_python(code)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def without(library: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``fleet`` on a machine that lacks a library."""
    return run_python(
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {library!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        f"sys.argv = ['fleet', *{list(arguments)!r}]\n"
        "from fleet.cli.entry import main\n"
        "main()\n"
    )


def test_a_bare_install_says_what_to_install() -> None:
    done = without("httpx", "rollout", "list", "--state", "running")
    assert done.returncode == 2, done.stderr
    assert "pip install 'muster-edge[fleet]'" in done.stderr
    assert "httpx is not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bare_install_still_has_its_help() -> None:
    done = without("httpx", "--help")
    assert done.returncode == 0, done.stderr
    assert "needs the fleet extra" in done.stdout


def test_a_library_missed_while_a_command_runs_is_named_too() -> None:
    done = without("uvloop", "serve", "--home", "/nonexistent")
    assert done.returncode == 2, done.stderr
    assert "uvloop is not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_part_of_ours_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (Command("status", "fleet.cli.nosuch", "status"),)
    monkeypatch.setattr(app_module, "COMMANDS", broken)
    tree = typer.main.get_command(app)
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
    result = CliRunner().invoke(app, ["status"])
    assert isinstance(result.exception, ModuleNotFoundError)
    assert tree.name == "fleet"
