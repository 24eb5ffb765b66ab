"""Real `shoal` processes, in namespaces or not; each is ended by its id, none outlives its test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, Self

from node.control.client import ControlClient
from node.control.facade import EXPIRES_DEFAULT_S, USES_DEFAULT, Role
from node.control.shapes import to_json

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
CALL_TIMEOUT_S = 120.0  # above every `--timeout` that a test gives
ROOT = Path(__file__).resolve().parents[2]


class Wraps(Protocol):
    """Where a device's commands run: a host of a network, or other mounts."""

    def wrap(self, command: list[str]) -> list[str]:
        """The command, run there."""
        ...


class Device:
    """One home, one directory, at most one running node. `options` are given at every start."""

    def __init__(
        self, base: Path, name: str, host: Wraps | None = None, *, options: tuple[str, ...] = ()
    ) -> None:
        self.name = name
        self.home = base / f"{name}-home"
        self.directory = base / name
        self.log = base / f"{name}.log"
        self.options = options
        self._host = host
        self._process: subprocess.Popen[str] | None = None
        self.ready_line = ""

    def command(self, *arguments: str) -> list[str]:
        """The command line of one CLI call on this device's host."""
        command = [sys.executable, "-m", "node.cli.main", "--home", str(self.home), *arguments]
        return command if self._host is None else self._host.wrap(command)

    def up(self, *options: str) -> None:
        """`shoal up`, and wait for the line that says it is ready."""
        self.start(
            "up", str(self.directory), "--name", self.name, "--verbose", *self.options, *options
        )

    def join(self, invitation: str, *options: str) -> None:
        """`shoal join`, and wait for the line that says it is ready."""
        self.start(
            "join",
            invitation,
            str(self.directory),
            "--name",
            self.name,
            "--verbose",
            *self.options,
            *options,
        )

    def start(self, *arguments: str) -> None:
        """Start a node, and wait for the line that says it is ready."""
        self._process = self._spawn(*arguments)
        timer = threading.Timer(READY_TIMEOUT_S, self._process.kill)
        timer.start()
        try:
            assert self._process.stdout is not None
            self.ready_line = self._process.stdout.readline().strip()
        finally:
            timer.cancel()
        if not self.ready_line:
            code = self._process.wait()
            self._process.stdout.close()
            self._process = None
            raise AssertionError(f"{self.name} did not start (exit code {code}):\n{self.tail()}")
        threading.Thread(target=self._drain, args=(self._process,), daemon=True).start()

    def live(self, seconds: float) -> None:
        """`shoal up` for so long, counted from the start of the process, and SIGKILL."""
        process = self._spawn(
            "up", str(self.directory), "--name", self.name, "--verbose", *self.options
        )
        assert process.stdout is not None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        else:
            raise AssertionError(f"{self.name} ended by itself ({code}):\n{self.tail()}")
        finally:
            process.stdout.close()

    def _spawn(self, *arguments: str) -> subprocess.Popen[str]:
        assert self._process is None, f"{self.name} runs already"
        with self.log.open("a") as log:
            return subprocess.Popen(
                self.command(*arguments),
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONFAULTHANDLER": "1"},
            )

    def _drain(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with self.log.open("a") as log, process.stdout:
            for line in process.stdout:
                log.write(line)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One CLI call."""
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            check=False,
            timeout=CALL_TIMEOUT_S,
        )
        if check:
            assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}\n{self.tail()}"
        return done

    def run_json(self, *arguments: str) -> Any:
        """One CLI call with `--json`; what it printed."""
        return json.loads(self.run(*arguments, "--json").stdout)

    # The next four ask as the CLI does, without starting a Python for every question.

    def invite(self, *options: str) -> str:
        """A fresh invitation."""
        if options:
            return self.run("invite", str(self.directory), *options).stdout.splitlines()[0]
        with ControlClient(self.home) as client:
            return client.invite(
                self.directory, role=Role.EDITOR, uses=USES_DEFAULT, expires_s=EXPIRES_DEFAULT_S
            )

    def status(self) -> dict[str, Any]:
        """What `shoal status --json` says."""
        with ControlClient(self.home) as client:
            status: dict[str, Any] = to_json(client.status())
        return status

    def folder(self) -> dict[str, Any]:
        """This device's only folder in `status`."""
        (folder,) = self.status()["folders"]
        assert isinstance(folder, dict)
        return folder

    def wait(self, devices: int, timeout_s: float = 60.0) -> None:
        """As `shoal wait`; fails when the time is over."""
        with ControlClient(self.home) as client:
            result = client.wait(self.directory, devices=devices, timeout_s=timeout_s)
        assert result.reached, f"{result} after {timeout_s} s, wanted {devices}:\n{self.tail()}"

    @property
    def running(self) -> bool:
        """True while the node's process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the running node."""
        assert self._process is not None
        return self._process.pid

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """SIGTERM or another signal, and wait; returns the exit code."""
        return self._end(number)

    def kill(self) -> None:
        """SIGKILL, as if the plug were pulled on the process."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        process, self._process = self._process, None
        # `ip netns exec` execs the program, so this is the node itself.
        process.send_signal(number)
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # faulthandler writes where it hangs
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
            process.kill()
            process.wait()
            raise AssertionError(f"{self.name} did not stop:\n{self.tail(80)}") from None

    def tail(self, lines: int = 40) -> str:
        """The end of the node's log."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.kill()


def free_port() -> int:
    """A UDP port that nobody uses on loopback right now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def on_loopback(base: Path, name: str, *, port: int = 0, peers: tuple[int, ...] = ()) -> Device:
    """A device that stays on 127.0.0.1; 0 takes any free port."""
    options = ["--no-lan", "--listen", f"127.0.0.1:{port or free_port()}"]
    for peer in peers:
        options += ["--peer", f"127.0.0.1:{peer}"]
    return Device(base, name, options=tuple(options))


@contextlib.contextmanager
def members(base: Path, *names: str) -> Iterator[tuple[Device, ...]]:
    """Running members of one folder on loopback, all of whom know each other's address."""
    ports = {name: free_port() for name in names}
    with contextlib.ExitStack() as stack:
        devices = tuple(
            stack.enter_context(
                on_loopback(
                    base,
                    name,
                    port=ports[name],
                    peers=tuple(port for other, port in ports.items() if other != name),
                )
            )
            for name in names
        )
        devices[0].up()
        for device in devices[1:]:
            device.join(devices[0].invite())
        yield devices


@contextlib.contextmanager
def two_members(base: Path) -> Iterator[tuple[Device, Device]]:
    """Two running members of one folder on loopback, who know each other's address."""
    with members(base, "anna", "ben") as (anna, ben):
        yield anna, ben
