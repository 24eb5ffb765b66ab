"""The lab: hosts on a bridge, each with a fresh file system, and meters for what a tool costs.

Wire bytes are counted at the switch's end of the first host's cable: all that it sends and
receives. CPU seconds and peak memory are those of the tool's processes and their children, of all
hosts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import netns

IMAGE_SIZE = 12 * 2**30  # bytes, sparse
POLL_S = 0.002
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class NotEqualInTimeError(Exception):
    """The folders did not become the same."""


@dataclass(frozen=True)
class Site:
    """One host with its folder and a place for a tool's own files, on one fresh file system."""

    host: netns.Host
    base: Path

    @property
    def folder(self) -> Path:
        """What is kept the same."""
        return self.base / "folder"

    @property
    def home(self) -> Path:
        """For a tool's settings and databases."""
        return self.base / "home"


@dataclass
class Cost:
    """What one step cost."""

    seconds: float
    cpu_s: float
    wire_bytes: int
    peak_memory_bytes: int


@dataclass
class Meter:
    """Sums up what processes use, the ended ones included as far as they were seen."""

    lan: netns.Lan
    pids: Callable[[], list[int]]
    _seen: dict[int, tuple[float, int]] = field(default_factory=dict)

    def wire_bytes(self) -> int:
        """Both directions, at the first host's port."""
        total = 0
        for direction in ("rx", "tx"):
            path = f"/sys/class/net/{self.lan.port(0)}/statistics/{direction}_bytes"
            command = ["ip", "netns", "exec", self.lan.switch, "cat", path]
            total += int(subprocess.run(command, capture_output=True, check=True).stdout)
        return total

    def look(self) -> tuple[float, int]:
        """CPU seconds so far, and the largest peak memory of one process."""
        for pid in _with_children(self.pids()):
            with contextlib.suppress(OSError, ValueError):
                self._seen[pid] = (_cpu_s(pid), _peak_memory(pid))
        return sum(cpu for cpu, _ in self._seen.values()), max(
            (peak for _, peak in self._seen.values()), default=0
        )


@contextlib.contextmanager
def sites(count: int) -> Iterator[tuple[netns.Lan, list[Site]]]:
    """Hosts with empty folders; everything is taken away afterwards."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name, netns.lan(count) as lan:
        mounts: list[Path] = []
        try:
            made = []
            for number, host in enumerate(lan.hosts):
                base = Path(name) / f"host{number}"
                base.mkdir()
                _fresh_file_system(Path(name) / f"{number}.ext4", base)
                mounts.append(base)
                site = Site(host, base)
                site.folder.mkdir()
                site.home.mkdir()
                made.append(site)
            yield lan, made
        finally:
            for mount in mounts:
                subprocess.run(["umount", "-l", str(mount)], check=False)


def _fresh_file_system(image: Path, mount: Path) -> None:
    """Deleting many files makes a used one slower: every run gets a new one."""
    with image.open("wb") as file:
        file.truncate(IMAGE_SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    shutil.rmtree(mount / "lost+found")


def missing_tool(*programs: str) -> str | None:
    """The first program that is not installed."""
    return next((one for one in programs if shutil.which(one) is None), None)


# --- when are folders the same? -------------------------------------------------------------------

Snapshot = dict[str, tuple[int, int]]


def snapshot(folder: Path) -> Snapshot:
    """Path → (size, mtime in seconds, as Unison keeps it); a directory has size -1."""
    found: Snapshot = {}
    stack = [""]
    while stack:
        inner = stack.pop()
        try:
            entries = list(os.scandir(folder / inner))
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith((".st", ".shoal", ".unison", ".syncthing", "~syncthing")):
                continue
            path = f"{inner}/{entry.name}" if inner else entry.name
            try:
                stat = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if entry.is_dir(follow_symlinks=False):
                found[path] = (-1, 0)
                stack.append(path)
            else:
                found[path] = (stat.st_size, stat.st_mtime_ns // 10**9)
    return found


def wait_same(source: Path, others: list[Path], timeout_s: float) -> None:
    """Return as soon as all folders show what `source` does, by names, sizes and times.

    Raises:
        NotEqualInTimeError: they do not, in time.
    """
    wanted = snapshot(source)
    deadline = time.monotonic() + timeout_s
    for other in others:
        pause = POLL_S
        while (found := snapshot(other)) != wanted:
            if time.monotonic() > deadline:
                wrong = {p for p in wanted.keys() | found.keys() if wanted.get(p) != found.get(p)}
                raise NotEqualInTimeError(f"{len(wrong)} differ, such as {sorted(wrong)[:3]}")
            time.sleep(pause)
            pause = min(0.02, pause * 1.5)


def check_contents(source: Path, others: list[Path]) -> None:
    """Compare every byte: a fast tool that is wrong is not fast.

    Raises:
        NotEqualInTimeError: a file differs.
    """
    for other in others:
        for path, (size, _) in snapshot(source).items():
            if size >= 0:
                command = ["cmp", "-s", str(source / path), str(other / path)]
                if subprocess.run(command, check=False).returncode:
                    raise NotEqualInTimeError(f"{path} has another content")


# --- /proc ----------------------------------------------------------------------------------------


def _with_children(pids: list[int]) -> list[int]:
    found, stack = [], list(pids)
    while stack:
        pid = stack.pop()
        found.append(pid)
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                text = Path(f"/proc/{pid}/task/{task}/children").read_text()
                stack += [int(child) for child in text.split()]
    return found


def _cpu_s(pid: int) -> float:
    """Own time and that of children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(fields[index]) for index in range(11, 15)) / TICKS_PER_S


def _peak_memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
