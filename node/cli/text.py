"""Values as people read them. Pure."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime
from typing import Final

_UNITS: Final = ("kB", "MB", "GB", "TB")
_DURATION: Final = re.compile(r"([0-9]{1,9})\s*([smhd]?)")
_SIZE: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*(b?|kb|mb|gb|tb)")
_SECONDS_SINCE_1970: Final = re.compile(r"[0-9]{9,11}(?:\.[0-9]{1,9})?")
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


def parse_size(text: str) -> int:
    """Bytes of `500`, `20MB`, `1.5 GB` or `1TB`, in units of 1000; raises ValueError else."""
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"'{text}' is no size; write 500MB, 10GB or 1TB")
    return int(float(match[1]) * 1000 ** " kmgt".index(match[2].rstrip("b") or " "))


def parse_time(text: str, now_s: float) -> int:
    """Milliseconds since 1970 UTC of a moment as people write it.

    `2026-11-21 14:30`, `2026-11-21` (its first moment), both by the local clock; ISO 8601 with a
    zone, as `shoal history --json` prints it; `2h` or `3d`, so long before `now_s`; seconds since
    1970. Raises ValueError on anything else.
    """
    plain = text.strip()
    if _SECONDS_SINCE_1970.fullmatch(plain):
        return round(float(plain) * 1000)
    ago = plain.removesuffix("ago").strip()
    if ago and ago[-1] in "smhd":
        return round((now_s - parse_duration(ago)) * 1000)
    try:
        moment = datetime.fromisoformat(plain)
    except ValueError:
        raise ValueError(
            f"'{text}' is no time; write 2026-11-21 14:30, 2026-11-21, or 2h for two hours ago"
        ) from None
    return round(moment.timestamp() * 1000)


def local_time_text(iso: str) -> str:
    """A time that the node told, by the local clock, to the second."""
    moment = datetime.fromisoformat(iso)
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"
