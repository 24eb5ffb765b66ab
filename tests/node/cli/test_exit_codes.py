"""The table of exit codes, its documentation and the error classes say the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from crdt.errors import ShoalError
from node.cli.exit_codes import EXIT_CODES
from node.control.errors import exit_code_of

ROOT = Path(__file__).resolve().parents[3]


def codes_in_source() -> Iterator[tuple[str, int]]:
    """(class, code) for each `exit_code = N` in a class body of the program."""
    for room in ("crdt", "transport", "discovery", "node"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.ClassDef):
                    continue
                for line in node.body:
                    match line:
                        case ast.Assign(
                            targets=[ast.Name("exit_code")], value=ast.Constant(int(n))
                        ) | ast.AnnAssign(ast.Name("exit_code"), value=ast.Constant(int(n))):
                            yield node.name, n
                        case _:
                            pass


def test_every_error_class_has_a_documented_code() -> None:
    found = dict(codes_in_source())
    assert found["CallerError"] == 2
    assert {name: code for name, code in found.items() if code not in EXIT_CODES} == {}


def test_the_documentation_repeats_the_table() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "docs/cli.md").read_text(), re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == EXIT_CODES


def test_codes_fit_a_process() -> None:
    assert all(0 <= code < 126 or code == 130 for code in EXIT_CODES)
    assert exit_code_of(ShoalError("x")) == 1
