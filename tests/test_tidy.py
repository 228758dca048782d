"""The style of the house, executed."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("runtime", "gateway", "placement", "native", "deploy")
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
COLUMNS_MAX = 100
BANNED = {
    r"\bTODO\b|\bFIXME\b|\bXXX\b": "finish it, or leave it out",
    r"\bNotImplementedError\b": "a seam is a Protocol; what is not built is not there",
    r"\bprint\(": "log with structlog, or click.echo in the command line",
    r"\bimport pickle\b|\bpickle\.loads?\b|torch\.load\(": "pickle is refused",
    r"\bassert_called": "assert on behaviour, not on calls",
    r"except Exception:\s*pass": "an error is handled or raised",
    r"\btrust_remote_code\b": "code never comes with a checkpoint",
    r"\bshell=True\b": "processes are started from argument lists",
}


def tracked(*suffixes: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    files = [ROOT / name for name in listed if name.endswith(suffixes)]
    return [file for file in files if file.is_file() and not file.is_symlink()]


def product_modules() -> list[Path]:
    return [f for f in tracked(".py") if f.relative_to(ROOT).parts[0] in PACKAGES]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", tracked(".py", ".cpp", ".h"), ids=relative)
def test_a_module_has_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MODULE_LINES_MAX


@pytest.mark.parametrize("path", tracked(".py"), ids=relative)
def test_a_function_has_at_most_70_lines(path: Path) -> None:
    long = [
        f"{node.name}: {(node.end_lineno or 0) - node.lineno + 1}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long == []


@pytest.mark.parametrize("path", tracked(".py", ".cpp", ".h"), ids=relative)
def test_a_line_has_at_most_100_columns(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert [n for n, line in enumerate(lines, 1) if len(line) > COLUMNS_MAX] == []


@pytest.mark.parametrize("path", product_modules(), ids=relative)
def test_banned_spellings_are_absent(path: Path) -> None:
    text = path.read_text()
    found = {why for pattern, why in BANNED.items() if re.search(pattern, text)}
    assert found == set()


def test_every_product_module_is_imported_or_run_by_something() -> None:
    everything = "\n".join(
        f.read_text() for f in tracked(".py", ".toml", ".sh", ".cpp", "Makefile")
    )
    dead = []
    for path in product_modules():
        name = path.stem
        if name == "__init__":
            continue
        dotted = ".".join(("stoker", *path.relative_to(ROOT).with_suffix("").parts))
        parent = dotted.rpartition(".")[0]
        imported = re.search(
            rf"{re.escape(dotted)}\b|from {re.escape(parent)} import [^\n]*\b{name}\b"
            rf"|from {re.escape(parent)} import \([^)]*\b{name}\b",
            everything,
        )
        if not imported:
            dead.append(relative(path))
    assert dead == []


def test_the_project_speaks_of_itself_alone() -> None:
    """No path of a machine, and no registry host, stands in a tracked text."""
    machine_path = re.compile(r"/(?:work|root|home/\w+)/(?!\.)\w")
    offenders = [
        relative(path)
        for path in tracked(".py", ".md", ".toml", ".txt", ".sh", ".yaml", ".yml", ".cpp", ".h")
        if machine_path.search(path.read_text()) and path.name != "test_tidy.py"
    ]
    assert offenders == []


def test_dependencies_are_pinned_exactly_in_the_constraints_file() -> None:
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert pins
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[\w.!+]+", line)] == []
