"""What is measured: each scenario fills the first folder, lets the tool bring the others up to
date, makes one change, and waits until all folders are the same again.

`scale` divides sizes and counts, for a quick run. All content is made by a seeded generator, so
that every tool gets the same.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lab import Cost, Meter, Site, check_contents, wait_same
from benchmarks.tools import Tool

KIB, MIB, GIB = 2**10, 2**20, 2**30
TIMEOUT_S = 120.0
SAVES = 20
SETTLE_S = 2.0  # before a change, so that what tools do afterwards is over

Change = Callable[[Path, int], None]


@dataclass(frozen=True)
class Scenario:
    """`prepare` and `change` get the folder and the scale."""

    key: str
    title: str
    prepare: Change
    change: Change
    receivers: int = 1
    initial: bool = False  # what is measured is the first copy: the change is made before the start
    restart: bool = False  # the first node is stopped and started in place of a change
    idle_s: float = 0.0
    latency: bool = False  # many saves, one after the other
    tools: tuple[str, ...] = ()  # only these; all if empty


# --- content --------------------------------------------------------------------------------------


def small_files(
    target: Path, count: int, seed: int = 1, low: int = 1_000, high: int = 15_000
) -> None:
    """Files of random bytes, 100 a directory."""
    chance = random.Random(seed)
    for number in range(count):
        directory = target / f"d{number // 100:04d}"
        if number % 100 == 0:
            directory.mkdir(parents=True)
        (directory / f"file {number}.bin").write_bytes(chance.randbytes(chance.randint(low, high)))


def random_file(path: Path, size: int, seed: int = 2) -> None:
    """Incompressible bytes."""
    chance = random.Random(seed)
    with path.open("wb") as file:
        for start in range(0, size, 4 * MIB):
            file.write(chance.randbytes(min(4 * MIB, size - start)))


def text_tree(target: Path, scale: int) -> None:
    """3,000 files, 59 MB: words of a small vocabulary in lines, as source code has them."""
    chance = random.Random(3)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz_", k=chance.randint(2, 12)))
             for _ in range(3_000)]  # fmt: skip
    for number in range(3_000 // scale):
        directory = target / f"package{number // 40}"
        directory.mkdir(parents=True, exist_ok=True)
        lines: list[str] = []
        size, wanted = 0, chance.randint(2_000, 37_000)
        while size < wanted:
            line = "    " * chance.randint(0, 4) + " ".join(
                chance.choices(words, k=chance.randint(1, 9))
            )
            lines.append(line)
            size += len(lines[-1]) + 1
        (directory / f"module{number}.py").write_text("\n".join(lines))


def database_file(path: Path, size: int) -> None:
    """Random pages behind SQLite's header."""
    random_file(path, size, seed=4)
    with path.open("r+b") as file:
        file.write(b"SQLite format 3\0" + (4096).to_bytes(2, "big"))


def write_at(path: Path, places: list[tuple[int, bytes]]) -> None:
    """Overwrite in place."""
    with path.open("r+b") as file:
        for offset, data in places:
            file.seek(offset)
            file.write(data)


# --- changes --------------------------------------------------------------------------------------


def nothing(folder: Path, scale: int) -> None:
    """The folder stays empty."""


def one_file(folder: Path, scale: int) -> None:
    (folder / "first").write_bytes(b"first")


def appear(make: Change) -> Change:
    """Made aside on the same file system, then renamed into the folder, all at once."""

    def change(folder: Path, scale: int) -> None:
        aside = folder.parent / "aside"
        aside.mkdir()
        make(aside, scale)
        os.sync()
        (aside / "new").rename(folder / "new")
        aside.rmdir()

    return change


def insert_front(folder: Path, scale: int) -> None:
    source, target = folder / "big", folder.parent / "aside"
    with source.open("rb") as old, target.open("wb") as new:
        new.write(b"x")
        shutil.copyfileobj(old, new, 4 * MIB)
    target.replace(source)


def append(folder: Path, scale: int) -> None:
    with (folder / "big").open("ab") as file:
        file.write(random.Random(6).randbytes(MIB))


def pages(folder: Path, scale: int) -> None:
    chance, size = random.Random(5), (folder / "big").stat().st_size
    places = [(4096 * chance.randrange(size // 4096), chance.randbytes(4096)) for _ in range(100)]
    write_at(folder / "big", places)


def big(size: int) -> Change:
    """One file of random bytes."""
    return lambda at, scale: random_file(at / "big", size // scale)


def many(count: int, name: str = "old", low: int = 1_000, high: int = 15_000) -> Change:
    """A directory of small files."""
    return lambda at, scale: small_files(at / name, count // scale, low=low, high=high)


def with_one_more(prepare: Change) -> Change:
    """A folder that is emptied makes Shoal stop, as a disk that went away would."""

    def both(folder: Path, scale: int) -> None:
        one_file(folder, scale)
        prepare(folder, scale)

    return both


def four_bytes(folder: Path, scale: int) -> None:
    write_at(folder / "big", [(GIB // scale + 12_345, b"edit")])


def rename_all(folder: Path, scale: int) -> None:
    (folder / "old").rename(folder / "renamed")


def delete_all(folder: Path, scale: int) -> None:
    shutil.rmtree(folder / "old")


TINY_FILES = many(100_000, low=100, high=2_000)
NEW_FILES = appear(many(10_000, "new"))
NEW_TEXT = appear(lambda at, scale: text_tree(at / "new", scale))
DATABASE: Change = lambda at, scale: database_file(at / "big", GIB // scale)  # noqa: E731
WATCHERS = ("shoal", "syncthing")
SHOAL = ("shoal",)

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("S1", "1 KiB saved, seen on the other host", one_file, nothing, latency=True),
    Scenario("S2", "10,000 small files (80 MB) appear", one_file, NEW_FILES),
    Scenario("S3", "1 GiB random, first copy", nothing, big(GIB), initial=True),
    Scenario("S4", "4 bytes changed in 2 GiB", big(2 * GIB), four_bytes),
    Scenario("S4x5", "the same, 4 receivers", big(2 * GIB), four_bytes, receivers=4),
    Scenario("S5", "1 byte inserted at the front of 1 GiB", big(GIB), insert_front),
    Scenario("S6", "directory of 10,000 files renamed", many(10_000), rename_all),
    Scenario("S7", "text tree, 3,000 files, 59 MB", one_file, NEW_TEXT),
    Scenario("S8", "idle for 60 s, 10,000 files", many(10_000), nothing, idle_s=60, tools=WATCHERS),
    Scenario("S9", "10,000 files deleted", with_one_more(many(10_000)), delete_all),
    Scenario("A1", "1 MB appended to 500 MB", big(500 * MIB), append),
    Scenario("A2", "100 pages of 4 KiB in a 1 GiB database", DATABASE, pages),
    Scenario("F4", "1 GiB to 4 hosts", nothing, big(GIB), receivers=4, initial=True,
             tools=WATCHERS),
    Scenario("C1", "first scan of 100,000 files", nothing, TINY_FILES, receivers=0, initial=True,
             tools=SHOAL),
    Scenario("C2", "restart with 100,000 unchanged files", TINY_FILES, nothing, receivers=0,
             restart=True, tools=SHOAL),
)  # fmt: skip


# --- running one ----------------------------------------------------------------------------------


@dataclass
class Result:
    """One scenario with one tool. `extra` holds what only some scenarios have."""

    scenario: str
    tool: str
    cost: Cost
    extra: dict[str, Any]


def run(scenario: Scenario, tool: Tool, lan: Any, sites: list[Site], scale: int) -> Result:
    """Carry one scenario out.

    Raises:
        NotEqualInTimeError: the tool did not make the folders equal in time.
    """
    source, others = sites[0].folder, [site.folder for site in sites[1:]]
    meter, extra = Meter(lan, tool.pids), {}
    scenario.prepare(source, scale)
    if scenario.initial:
        scenario.change(source, scale)
        os.sync()
        before = meter.wire_bytes()
        started = time.monotonic()
        tool.start(sites)
        tool.settle()
        wait_same(source, others, TIMEOUT_S)
        cpu_before = 0.0
    else:
        tool.start(sites)
        wait_same(source, others, TIMEOUT_S)
        os.sync()
        time.sleep(SETTLE_S)
        cpu_before, _ = meter.look()
        before = meter.wire_bytes()
        started = time.monotonic()
        if scenario.latency:
            extra = _saves(tool, source, others[0])
        elif scenario.restart:
            tool.restart()
        elif scenario.idle_s:
            time.sleep(scenario.idle_s)
        else:
            scenario.change(source, scale)
            changed = time.monotonic()
            extra["change_s"] = round(changed - started, 3)
            tool.sync()
            wait_same(source, others, TIMEOUT_S)
    seconds = time.monotonic() - started
    cpu, memory = meter.look()
    cost = Cost(seconds, cpu - cpu_before, meter.wire_bytes() - before, memory)
    if scenario.latency:
        cost.seconds = extra["median_s"]
    check_contents(source, others)
    if scenario.receivers > 1 and scenario.initial:
        size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
        extra["origin_sends"] = round(cost.wire_bytes / size, 2)
    return Result(scenario.key, tool.name, cost, extra)


def _saves(tool: Tool, source: Path, other: Path) -> dict[str, float]:
    """New file and rename, as editors do, and how long until the other host shows it."""
    chance, seconds = random.Random(7), []
    for number in range(SAVES):
        time.sleep(0.3)
        data = chance.randbytes(1024)
        aside = source.parent / "aside"
        aside.write_bytes(data)
        started = time.monotonic()
        aside.rename(source / "saved")
        tool.sync()
        while _read(other / "saved") != data:
            if time.monotonic() - started > TIMEOUT_S:
                raise TimeoutError(f"save {number} did not arrive")
            time.sleep(0.001)
        seconds.append(time.monotonic() - started)
    seconds.sort()
    return {
        "median_s": round(statistics.median(seconds), 4),
        "p95_s": round(seconds[int(0.95 * (len(seconds) - 1))], 4),
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
