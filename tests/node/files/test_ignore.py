from __future__ import annotations

import pytest

from node.files.ignore import RULES_MAX, TEXT_BYTES_MAX, WARNINGS_MAX, IgnoreRules

TEXT = """\
# build products
*.pyc
/build/
node_modules/
!keep.pyc
docs/**/draft*
\\#hash
trailing\\\x20
"""


@pytest.mark.parametrize(
    ("path", "is_directory", "ignored"),
    [
        ("x.pyc", False, True),
        ("a/b/x.pyc", False, True),
        ("keep.pyc", False, False),
        ("a/keep.pyc", False, False),
        ("build", True, True),
        ("build", False, False),  # the rule is for directories
        ("a/build", True, False),  # and for the top level
        ("a/node_modules", True, True),
        ("a/node_modules/x", False, True),
        ("docs/1/2/draft-3", False, True),
        ("#hash", False, True),
        ("trailing ", False, True),
        ("a.py", False, False),
        ("", True, False),
        ("\udcff.pyc", False, True),
    ],
)
def test_gitignore_rules(path: str, is_directory: bool, ignored: bool) -> None:
    assert IgnoreRules.parse(TEXT).ignores(path, is_directory) is ignored


@pytest.mark.parametrize(
    "path",
    [
        ".shoal",
        ".SHOAL",
        "a/.Shoal/x",
        ".shoal/tmp/x",
        "a/.shoal ",
        ".shoal.",
        ".sho\u200cal",
        ".shoal::$INDEX_ALLOCATION",
        "SHOAL~1",
        "a/.shoal-tmp-1f",
        ".ſhoal",
        "．shoal",
    ],
)
def test_our_own_names_are_always_ignored(path: str) -> None:
    assert IgnoreRules.parse("!.shoal\n!*\n").ignores(path, False)


@pytest.mark.parametrize("path", [".shoalignore", "shoal", ".shoals", "x.shoal", "shoal~x", "~1"])
def test_names_that_only_look_like_ours(path: str) -> None:
    assert not IgnoreRules.none().ignores(path, False)


def test_a_bad_line_is_a_warning_and_the_rest_works() -> None:
    rules = IgnoreRules.parse("*.o\r\n[z-a]\n!\n\\\n/\n*a*b*c*d*e*\n**/a/**/b/**\nnul\0\n*.tmp")
    assert [warning.split(":")[0] for warning in rules.warnings] == [
        f"line {n}" for n in range(2, 9)
    ]
    assert rules.ignores("x.o", False)
    assert rules.ignores("x.tmp", False)
    assert not rules.ignores("x.c", False)


def test_limits() -> None:
    many = IgnoreRules.parse("\n".join(f"name{n}" for n in range(RULES_MAX + 5)))
    assert len(many.warnings) == 1
    assert many.ignores(f"name{RULES_MAX - 1}", False)
    assert not many.ignores(f"name{RULES_MAX}", False)
    large = IgnoreRules.parse("*.o\n" + "#" * TEXT_BYTES_MAX + "\n*.c\n")
    assert "KiB" in large.warnings[0]
    assert large.ignores("x.o", False)
    assert not large.ignores("x.c", False)
    assert IgnoreRules.parse("x" * 2000).warnings
    assert len(IgnoreRules.parse("/\n" * 100).warnings) == WARNINGS_MAX + 1


def test_a_byte_order_mark_is_no_pattern() -> None:
    assert IgnoreRules.parse("\ufeff*.o").ignores("x.o", False)
