"""House style as a test: what the linters cannot say.

The lists of exceptions only shrink: an entry that is no longer needed fails, and so does a file
that grew beyond its entry.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("crdt", "transport", "discovery", "node", "simulations")
MODULE_LINES_MAX = 500  # beyond that, a module has two ideas in it
FUNCTION_LINES_MAX = 60

LONG_MODULES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}
SLEEPY_TESTS = {
    "tests/transport/test_quic.py",  # silence on a real socket can only be waited for
}

PROGRAM = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
OTHERS = sorted((ROOT / "benchmarks").rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PLAIN = [ROOT / name for name in ("Makefile", "pyproject.toml", "requirements.lock", ".ci/run")]

# Directories of one machine, which mean nothing on another.
MACHINE_PATHS = re.compile(r"(?<![\w.~/}-])/(?:work|root|opt|mnt|home)/")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """(file:function, its lines)."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{name_of(path)}:{node.name}", node.end_lineno - node.lineno + 1


def calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    """(call, what it calls as written)."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def hold_to(limit: int, sizes: dict[str, int], exceptions: dict[str, int]) -> None:
    too_long = {name: size for name, size in sizes.items() if size > exceptions.get(name, limit)}
    assert not too_long, f"longer than {limit} lines, or than their exception"
    stale = {name for name in exceptions if sizes.get(name, 0) <= limit}
    assert not stale, "no exception is needed any more; take it off the list"


def test_modules_are_short() -> None:
    sizes = {name_of(path): len(path.read_text().splitlines()) for path in PROGRAM + OTHERS}
    hold_to(MODULE_LINES_MAX, sizes, LONG_MODULES)


def test_functions_are_short() -> None:
    sizes = {name: size for path in PROGRAM + OTHERS for name, size in functions(path)}
    hold_to(FUNCTION_LINES_MAX, sizes, LONG_FUNCTIONS)


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        name_of(path)
        for path in PROGRAM + OTHERS
        if path.stat().st_size and ast.get_docstring(parse(path)) is None
    ]
    assert not silent


def test_tests_do_not_sleep() -> None:
    """`trio.sleep(0)` and `sleep_forever` wait for no clock; `MockClock` makes none wait."""
    sleepy = {
        name_of(path)
        for path in TESTS
        for call, name in calls(path)
        if name in {"time.sleep", "sleep"}
        or (name == "trio.sleep" and ast.unparse(call.args[0]) != "0" and not mocks_clock(path))
    }
    assert sleepy == SLEEPY_TESTS


def mocks_clock(path: Path) -> bool:
    text = path.read_text()
    return "MockClock" in text or "autojump_clock" in text


def test_tests_use_fakes_not_mocks() -> None:
    assert not [
        name_of(path) for path in TESTS if re.search(r"unittest|\bMock\(", import_text(path))
    ]


def import_text(path: Path) -> str:
    found = (n for n in ast.walk(parse(path)) if isinstance(n, ast.Import | ast.ImportFrom))
    return "\n".join(map(ast.unparse, found))


def test_tests_mirror_the_tree() -> None:
    cross_cutting = {"integration", "conformance", "tidy", "support", "fuzz", "plans"}
    lost = set()
    for path in TESTS:
        where = path.parent.relative_to(ROOT / "tests")
        if where.parts and where.parts[0] not in cross_cutting and not (ROOT / where).is_dir():
            lost.add(where.as_posix())
    assert not lost


def test_test_directories_are_no_packages() -> None:
    """`--import-mode=importlib` needs none; only what tests import from is one."""
    packages = {name_of(path.parent) for path in TESTS if path.name == "__init__.py"}
    assert packages <= {"tests", "tests/support", "tests/fuzz", "tests/plans"}


def test_asserts_in_the_program_carry_no_work() -> None:
    """`python -O` drops asserts, so none may await or assign."""
    working = [
        f"{name_of(path)}:{node.lineno}"
        for path in PROGRAM
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Assert)
        and any(isinstance(inner, ast.Await | ast.NamedExpr) for inner in ast.walk(node.test))
    ]
    assert not working


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, UNFINISHED], ids=["machine", "unfinished"])
def test_nothing_names_one_machine_or_is_left_for_later(pattern: re.Pattern[str]) -> None:
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in PROGRAM + TESTS + OTHERS + DOCUMENTS + PLAIN
        if path != Path(__file__).resolve() and path.exists()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


def test_the_lock_file_names_hashes_and_no_place() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    options = {line.split("=")[0].strip() for line in lines if line.lstrip().startswith("-")}
    assert options == {"--hash"}
    assert not [line for line in lines if "://" in line]
    pinned = [number for number, line in enumerate(lines) if re.match(r"\S+==\S+ \\$", line)]
    assert pinned
    assert all("--hash=sha256:" in lines[number + 1] for number in pinned)


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{name_of(path)}: {target}"
        for path in DOCUMENTS
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text())
        if not (path.parent / target).exists()
    ]
    assert not broken
