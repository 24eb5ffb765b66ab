"""Values as people read them. Pure."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_UNITS: Final = ("kB", "MB", "GB", "TB")
_DURATION: Final = re.compile(r"([0-9]{1,9})\s*([smhd]?)")
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def printable(text: str) -> str:
    """`text` without anything that could steer a terminal, fake a line or fail to encode.

    File names may hold escape sequences, and lone surrogates where they are no UTF-8.
    """
    return "".join(
        f"\\x{ord(c):02x}" if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} else c
        for c in text
    )


def size_text(size: float) -> str:
    """`size` bytes in units of 1000, as file managers show them: `4.1 MB`."""
    if size < 1000:
        return f"{size:.0f} B"
    power = 1
    while power < len(_UNITS) and size >= 999.95 * 1000**power:
        power += 1
    return f"{size / 1000**power:.1f} {_UNITS[power - 1]}"


def count_text(count: int, word: str) -> str:
    """`1 file`, `12,345 files`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def duration_text(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def span_text(seconds: float) -> str:
    """`1 day`, `12 hours`, `90 seconds`: the largest unit that fits without a rest."""
    for size, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds % size == 0:
            return count_text(int(seconds // size), word)
    return count_text(round(seconds), "second")


def parse_duration(text: str) -> float:
    """Seconds of `30`, `30s`, `10m`, `12h` or `1d`; raises ValueError on anything else."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"'{text}' is no duration; write 30s, 10m, 12h or 1d")
    return float(int(match[1]) * _SECONDS[match[2]])
