"""`make demo`: two devices on this machine, with everything real but the distance.

Two homes and two folders in a temporary directory, two `shoal` processes on loopback; one invites,
the other joins; files go across while a clock runs. Whatever happens, both processes are ended and
the directory is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

import click

BIG_FILE_SIZE: Final = 64 * 1024 * 1024
SMALL_FILES: Final = 500
READY_TIMEOUT_S: Final = 60.0
STEP_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
POLL_S: Final = 0.002  # another process's disk can only be looked at
_CHUNK: Final = 1024 * 1024


class DemoError(Exception):
    """A device did not do what the demo shows."""


class Device:
    """A home, a folder and a running node."""

    def __init__(self, base: Path, name: str) -> None:
        self.name = name
        self.folder = base / name
        self._home = base / f"{name}.home"
        self._log = base / f"{name}.log"
        self._process: subprocess.Popen[str] | None = None
        self.ready_line = ""

    def start(self, *arguments: str) -> None:
        """Run `up` or `join`; returns when the node says that it is ready."""
        options = ["--name", self.name, "--listen", "127.0.0.1:0", "--no-lan"]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command(*arguments, *options), stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        self.ready_line = _first_line(self._process, self._process.stdout)
        if not self.ready_line:
            raise DemoError(f"{self.name} did not start:\n{self._log.read_text()}")

    def run(self, *arguments: str) -> str:
        """One call of the CLI; returns its stdout."""
        done = subprocess.run(
            self._command(*arguments), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise DemoError(f"shoal {arguments[0]} failed: {done.stderr}")
        return done.stdout

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not listen."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "node.cli.main", "--home", str(self._home), *arguments]


def demo() -> None:
    """Run it."""
    with tempfile.TemporaryDirectory(prefix="shoal-demo-") as place:
        with _devices(Path(place)) as (laptop, desk):
            _show(laptop, desk)
        click.echo("Both nodes stopped; everything of the demo is removed.")


@contextlib.contextmanager
def _devices(base: Path) -> Iterator[tuple[Device, Device]]:
    with contextlib.ExitStack() as stack:
        laptop, desk = Device(base, "laptop"), Device(base, "desk")
        for device in (laptop, desk):
            stack.callback(device.stop)
        yield laptop, desk


def _show(laptop: Device, desk: Device) -> None:
    laptop.start("up", str(laptop.folder))
    click.echo(f"laptop  {laptop.ready_line}")
    (laptop.folder / "letters").mkdir()
    for number in range(SMALL_FILES):
        (laptop.folder / "letters" / f"{number}.txt").write_text(f"letter {number}\n" * 20)
    invitation = laptop.run("invite", str(laptop.folder)).splitlines()[0]
    click.echo(f"laptop  invites: {invitation[:24]}…")

    began = time.monotonic()
    desk.start("join", invitation, str(desk.folder))
    click.echo(f"desk    {desk.ready_line}")
    last = desk.folder / "letters" / f"{SMALL_FILES - 1}.txt"
    _until(lambda: last.exists() and len(list(last.parent.iterdir())) == SMALL_FILES)
    _tell(began, f"desk has joined and holds {SMALL_FILES} small files")

    began = time.monotonic()
    (laptop.folder / "hello.txt").write_text("hello\n")
    _until((desk.folder / "hello.txt").exists)
    _tell(began, "a new file on the laptop is on the desk")

    began = time.monotonic()
    (desk.folder / "hello.txt").write_text("hello yourself\n")
    _until(lambda: "yourself" in (laptop.folder / "hello.txt").read_text())
    _tell(began, "the desk's edit of it is on the laptop")

    digest = _write_random(laptop.folder / "film.bin", BIG_FILE_SIZE)
    began = time.monotonic()
    _until((desk.folder / "film.bin").exists)
    seconds = _tell(began, f"{BIG_FILE_SIZE >> 20} MiB of random bytes went across")
    if _digest(desk.folder / "film.bin") != digest:
        raise DemoError("the big file arrived with other content")
    click.echo(f"        that is {BIG_FILE_SIZE / seconds / 1e6:.0f} MB/s, encrypted end to end")

    began = time.monotonic()
    (laptop.folder / "letters").rename(laptop.folder / "post")
    _until((desk.folder / "post" / "0.txt").exists)
    _tell(began, f"a directory of {SMALL_FILES} files was renamed; no content was sent")


def _tell(began: float, what: str) -> float:
    seconds = time.monotonic() - began
    click.echo(f"{seconds * 1000:5.0f} ms  {what}")
    return seconds


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError(f"nothing came across in {STEP_TIMEOUT_S:g} s")
        time.sleep(POLL_S)


def _first_line(process: subprocess.Popen[str], stdout: IO[str]) -> str:
    timer = threading.Timer(READY_TIMEOUT_S, process.kill)
    timer.start()
    try:
        return stdout.readline().strip()
    finally:
        timer.cancel()


def _write_random(path: Path, size: int) -> str:
    """Write beside the folder and move in, so that the clock starts with a whole file."""
    digest = hashlib.sha256()
    outside = path.parent.parent / path.name
    with outside.open("wb") as handle:
        for _ in range(size // _CHUNK):
            chunk = os.urandom(_CHUNK)
            digest.update(chunk)
            handle.write(chunk)
    outside.rename(path)
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


if __name__ == "__main__":
    try:
        demo()
    except DemoError as error:
        sys.exit(f"demo: {error}")
