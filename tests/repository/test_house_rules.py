"""The repository keeps its own rules: direction of imports, sizes, names, the README's two commands, the changelog."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import __version__
from tests.readme_command import command

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("agent", "fleet", "protos", "simulator")
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70
FORBIDDEN_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if not path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
                yield path


def test_import_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_too_long() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources()
        if (lines := path.read_text(encoding="utf-8").count("\n")) > MAX_FILE_LINES
    }
    assert not long, f"more than {MAX_FILE_LINES} lines: is each one room or two? {long}"


def test_no_function_is_too_long() -> None:
    long = []
    for path in sources():
        if path.parent.name == "versions":
            continue  # a migration is one list of statements, never read as logic
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines}")
    assert not long, long


def test_nothing_is_raised_inside_except_star() -> None:
    """Before Python 3.11.4 it comes out in a group, past whoever waits for it (gh-103590)."""
    packages = (*PACKAGES, "tests", "benchmarks", "docs")
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in packages
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in raised_inside_except_star(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, f"keep the error in a variable and raise it after the block: {found}"


def raised_inside_except_star(tree: ast.AST) -> list[ast.Raise]:
    return [
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.TryStar)
        for handler in block.handlers
        for node in ast.walk(handler)
        if isinstance(node, ast.Raise)
    ]


def test_a_raise_inside_except_star_is_found() -> None:
    inside = "try:\n    f()\nexcept* OSError as e:\n    if e:\n        raise ValueError from e\n"
    after = "try:\n    f()\nexcept* OSError as e:\n    kept = e\nraise kept\n"
    assert [node.lineno for node in raised_inside_except_star(ast.parse(inside))] == [5]
    assert raised_inside_except_star(ast.parse(after)) == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sources()
        if path.read_text(encoding="utf-8").strip()
        and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None
    ]
    assert not silent, f"modules without a docstring: {silent}"


def test_no_module_is_a_drawer() -> None:
    drawers = [str(path) for path in sources() if path.stem in FORBIDDEN_NAMES]
    assert not drawers


def test_packaging_is_not_a_package() -> None:
    assert not (ROOT / "packaging" / "__init__.py").exists(), (
        "it would shadow the library of that name"
    )


@pytest.mark.parametrize("name", ["demo", "test"])
def test_readme_has_the_command_in_one_line(name: str) -> None:
    assert command(name).startswith("python3")


def test_readme_command_reader_refuses_what_is_not_one_line() -> None:
    two = "<!-- command: x -->\n```sh\na\nb\n```\n"
    with pytest.raises(LookupError, match="longer than one line"):
        command("x", two)
    with pytest.raises(LookupError, match="no command marked 'y'"):
        command("y", two)


def test_base_install_is_the_agent_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[\[<>=!~;]", text)[0] for text in project["dependencies"]}
    assert not names & {"sqlalchemy", "fastapi", "iotcore", "mqtt5", "onnx", "httpx"}
    assert set(project["optional-dependencies"]) >= {"fleet", "simulator", "dev"}
    assert set(project["scripts"]) == {"fleet", "fleet-agent", "fleet-sim"}
    assert project["version"] == __version__


def test_agent_imports_nothing_that_the_base_install_lacks() -> None:
    """Each agent module imports with every distribution of the other extras hidden."""
    code = (
        "import sys, importlib, pkgutil\n"
        "hidden = {'sqlalchemy','fastapi','iotcore','mqtt5','onnx','httpx','alembic','sklearn'}\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in hidden: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "import agent\n"
        "for module in pkgutil.walk_packages(agent.__path__, 'agent.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_changelog_names_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {__version__}" in text


def test_documents_link_to_files_that_exist() -> None:
    broken = []
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert not broken
