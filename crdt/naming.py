"""Names of conflict copies and of items that lost their name to another one.

From (item, device, mtime) alone, never from a clock or the order of arrival, so every device gives
the same names.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from crdt.ids import ItemId
from crdt.slot import NAME_SIZE_MAX, Content, Kind

MARK: Final = " (conflict "  # in every name that a loser is given

_SUFFIX: Final = re.compile(
    r" \(conflict [A-Z2-7]{7}(?: \d{4}-\d{2}-\d{2})?(?: [A-Z2-7]+[0-9]*)?\)$"
)
_ID_LENGTHS: Final = (0, 6, 12, 26)  # characters of the item's id, longer with each clash
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def suffixed_names(name: str, item: ItemId, content: Content) -> Iterator[str]:
    """The names that a loser tries, in order; the last ones hold its whole id, then count on."""
    stem, ending = split_name(name)
    stem = _SUFFIX.sub("", stem) or stem
    letters = base64.b32encode(item).decode().rstrip("=")
    label = content.origin[0].short + _date(content)  # whose bytes they are, whoever resolved
    for length in _ID_LENGTHS:
        mark = f"{MARK}{label}{' ' + letters[:length] if length else ''})"
        yield fit_name(stem, mark, ending)
    number = 2
    while True:
        yield fit_name(stem, f"{MARK}{label} {letters}{number})", ending)
        number += 1


def original_name(name: str) -> str | None:
    """The name that a loser had before it was given this one; None if nobody gave it one. Where it
    had to be cut, the rest of it is gone.
    """
    stem, ending = split_name(name)
    original = _SUFFIX.sub("", stem)
    return original + ending if original not in {"", stem} else None


def split_name(name: str) -> tuple[str, str]:
    """Stem and last ending (with its dot); a leading dot starts no ending."""
    at = name.rfind(".")
    return (name[:at], name[at:]) if at > 0 else (name, "")


def _date(content: Content) -> str:
    if content.kind is not Kind.FILE:
        return ""
    try:
        moment = _EPOCH + timedelta(seconds=content.mtime_ns // 1_000_000_000)
    except OverflowError:
        return ""
    return f" {moment:%Y-%m-%d}" if moment.year >= 1000 else ""


def fit_name(stem: str, mark: str, ending: str) -> str:
    """`stem + mark + ending`; the stem, then the ending is cut so that all fits into a name."""
    room = NAME_SIZE_MAX - len(mark.encode())
    ending = ending.encode()[: room - 1].decode(errors="ignore")
    room -= len(ending.encode())
    return stem.encode()[:room].decode(errors="ignore") + mark + ending
