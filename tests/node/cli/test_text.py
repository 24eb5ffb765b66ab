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


@pytest.mark.parametrize(
    ("written", "size"),
    [("0", 0), ("500", 500), ("500b", 500), ("20MB", 20_000_000), (" 1.5 GB ", 1_500_000_000)],
)
def test_sizes_are_parsed(written: str, size: int) -> None:
    assert text.parse_size(written) == size


@pytest.mark.parametrize("written", ["", "GB", "-1GB", "1e9", "1 PB", "1,5GB", "nan"])
def test_other_sizes_are_refused(written: str) -> None:
    with pytest.raises(ValueError, match="write 500MB, 10GB or 1TB"):
        text.parse_size(written)


NOW_S = 1_790_000_000.0


@pytest.mark.parametrize(
    ("written", "time_ms"),
    [
        ("2026-11-21T08:49:33.123Z", 1_795_250_973_123),
        ("2026-11-21T09:49:33.123+01:00", 1_795_250_973_123),
        ("1795250973", 1_795_250_973_000),
        ("1795250973.5", 1_795_250_973_500),
        ("2h", 1_789_992_800_000),
        ("3 d ago", 1_789_740_800_000),
    ],
)
def test_moments_are_parsed(written: str, time_ms: int) -> None:
    assert text.parse_time(written, NOW_S) == time_ms


def test_a_moment_without_a_zone_is_local() -> None:
    told = text.local_time_text("2026-11-21T08:49:33.123Z")
    assert text.parse_time(told, NOW_S) == 1_795_250_973_000


@pytest.mark.parametrize("written", ["", "yesterday", "ago", "2026", "12:30", "2026-13-01", "-2h"])
def test_other_moments_are_refused(written: str) -> None:
    with pytest.raises(ValueError, match="write"):
        text.parse_time(written, NOW_S)


def test_nothing_printed_steers_a_terminal() -> None:
    assert text.printable("grün 日本.txt") == "grün 日本.txt"
    assert text.printable("a\nb\x1b]0;x\x07\u202e\udcff") == r"a\x0ab\x1b]0;x\x07\x202e\xdcff"


def test_counts() -> None:
    assert text.count_text(1, "file") == "1 file"
    assert text.count_text(12345, "file") == "12,345 files"
