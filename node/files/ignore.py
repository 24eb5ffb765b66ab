"""What is not synced: `.shoalignore` in gitignore syntax, and always our own names.

`.shoalnomerge`, which names what is never merged, is read in the same way.

Rules decide what a scan does not look at; they never delete anything. As in git, nothing inside an
ignored directory can be brought back: the scanner does not enter it.

The file is synced, so it may come from another member: it is bounded in size and in rules, and each
pattern in wildcards, since they become regular expressions that backtrack. A bad line is a warning;
the others hold. Pure, but for `read_rules`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from pathspec import GitIgnoreSpec

from node.files.layout import is_ours_path
from node.files.port import FileSystem

TEXT_BYTES_MAX: Final = 64 * 1024
RULES_MAX: Final = 1_000  # each costs about 0.3 µs a path
PATTERN_BYTES_MAX: Final = 1_024
WILDCARDS_MAX: Final = 4  # runs of '*'; 4 cost 0.2 s on the worst name there is, 5 cost 10 s
DEEP_WILDCARDS_MAX: Final = 2  # of these '**'; 3 of them cost 0.4 s on a path 500 levels deep
WARNINGS_MAX: Final = 20  # a binary file by that name would fill the screen

_STARS: Final = re.compile(r"\*+")


@dataclass(frozen=True, slots=True)
class IgnoreRules:
    """Parsed rules; compare `text` to see whether a file changed them."""

    text: str
    warnings: tuple[str, ...]  # for people: "line 3: ..."
    _spec: GitIgnoreSpec

    @classmethod
    def none(cls) -> Self:
        """No file: only our own names are ignored."""
        return cls.parse("")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a file of rules; never fails."""
        warnings: list[str] = []
        if len(text.encode("utf-8", "surrogateescape")) > TEXT_BYTES_MAX:
            warnings.append(
                f"the file is larger than {TEXT_BYTES_MAX // 1024} KiB; its end is not read"
            )
        rules: list[str] = []
        for number, line in enumerate(_bounded_lines(text), 1):
            if not line.strip() or line.startswith("#"):
                continue
            if len(rules) == RULES_MAX:
                warnings.append(f"line {number}: only the first {RULES_MAX} rules are used")
                break
            if (why := _what_is_wrong(line)) is not None:
                warnings.append(f"line {number}: {why}: {line[:80]!r}")
            else:
                rules.append(line)
        if len(warnings) > WARNINGS_MAX:
            warnings[WARNINGS_MAX:] = [f"and {len(warnings) - WARNINGS_MAX} more"]
        return cls(text, tuple(warnings), GitIgnoreSpec.from_lines(rules))

    def ignores(self, path: str, is_directory: bool) -> bool:
        """Whether `path`, relative to the folder, is left out. About 1 µs for a few rules."""
        if not path:
            return False
        if is_ours_path(path):
            return True
        return bool(self._spec.patterns) and self._spec.match_file(
            f"{path}/" if is_directory else path
        )


def _bounded_lines(text: str) -> Iterable[str]:
    """Lines without their ends (CR as well); of an overlong text, those that are whole."""
    raw = text.encode("utf-8", "surrogateescape")
    if len(raw) > TEXT_BYTES_MAX:
        text = raw[:TEXT_BYTES_MAX].rpartition(b"\n")[0].decode("utf-8", "surrogateescape")
    return (line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n"))


def _what_is_wrong(line: str) -> str | None:
    """Why this rule cannot be used."""
    if "\0" in line:
        return "no text"
    if len(line.encode("utf-8", "surrogateescape")) > PATTERN_BYTES_MAX:
        return f"longer than {PATTERN_BYTES_MAX} bytes"
    stars = _STARS.findall(line)
    if len(stars) > WILDCARDS_MAX or sum(len(run) > 1 for run in stars) > DEEP_WILDCARDS_MAX:
        return f"more than {WILDCARDS_MAX} '*' or {DEEP_WILDCARDS_MAX} '**' in one rule"
    try:
        patterns = list(GitIgnoreSpec.from_lines([line]).patterns)
    except (ValueError, re.error, RecursionError, OverflowError):
        return "not a gitignore pattern"
    if all(pattern.include is None for pattern in patterns):
        return "matches nothing"
    return None


def read_rules(fs: FileSystem, path: str) -> IgnoreRules:
    """The rules in a file; none where it is not there, or cannot be read."""
    try:
        with fs.open_read(path) as handle:
            return IgnoreRules.parse(handle.read_at(0, TEXT_BYTES_MAX + 1).decode(errors="replace"))
    except OSError:
        return IgnoreRules.none()
