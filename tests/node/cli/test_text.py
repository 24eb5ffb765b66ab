"""Values as people read them."""

from __future__ import annotations

import pytest

from node.cli import text


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (4_100_000, "4.1 MB"),
        (10**15, "1000.0 TB"),
    ],
)
def test_sizes(size: int, shown: str) -> None:
    assert text.size_text(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert text.duration_text(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (86400, "1 day"),
        (172800, "2 days"),
        (43200, "12 hours"),
        (600, "10 minutes"),
        (90, "90 seconds"),
    ],
)
def test_spans(seconds: float, shown: str) -> None:
    assert text.span_text(seconds) == shown


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("30", 30), ("30s", 30), ("10m", 600), (" 12H ", 43200), ("7 d", 604800)],
)
def test_durations_are_parsed(written: str, seconds: float) -> None:
    assert text.parse_duration(written) == seconds


@pytest.mark.parametrize("written", ["", "d", "-1d", "1.5h", "1w", "1d2h", "9" * 30, "١٢h"])
def test_other_durations_are_refused(written: str) -> None:
    with pytest.raises(ValueError, match="write 30s, 10m, 12h or 1d"):
        text.parse_duration(written)


def test_nothing_printed_steers_a_terminal() -> None:
    assert text.printable("grün 日本.txt") == "grün 日本.txt"
    assert text.printable("a\nb\x1b]0;x\x07\u202e\udcff") == r"a\x0ab\x1b]0;x\x07\x202e\xdcff"


def test_counts() -> None:
    assert text.count_text(1, "file") == "1 file"
    assert text.count_text(12345, "file") == "12,345 files"
