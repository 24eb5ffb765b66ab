"""Real `shoal` processes, in namespaces or not; each is ended by its id and never outlives the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.support.netns import Host

READY_TIMEOUT_S = 60.0
ROOT = Path(__file__).resolve().parents[2]


class Device:
    """One home, one directory, at most one running node."""

    def __init__(self, base: Path, name: str, host: Host | None = None) -> None:
        self.name = name
        self.home = base / f"{name}-home"
        self.directory = base / name
        self.log = base / f"{name}.log"
        self._host = host
        self._process: subprocess.Popen[str] | None = None
        self.ready_line = ""

    def command(self, *arguments: str) -> list[str]:
        """The command line of one CLI call on this device's host."""
        command = [sys.executable, "-m", "node.cli.main", "--home", str(self.home), *arguments]
        return command if self._host is None else self._host.wrap(command)

    def up(self, *options: str) -> None:
        """`shoal up`, and wait for the line that says it is ready."""
        self._start("up", str(self.directory), "--name", self.name, *options)

    def join(self, invitation: str, *options: str) -> None:
        """`shoal join`, and wait for the line that says it is ready."""
        self._start("join", invitation, str(self.directory), "--name", self.name, *options)

    def _start(self, *arguments: str) -> None:
        assert self._process is None, f"{self.name} runs already"
        log = self.log.open("a")
        self._process = subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        )
        log.close()
        timer = threading.Timer(READY_TIMEOUT_S, self._process.kill)
        timer.start()
        try:
            assert self._process.stdout is not None
            self.ready_line = self._process.stdout.readline().strip()
        finally:
            timer.cancel()
        if not self.ready_line:
            self._process.wait()
            self._process = None
            raise AssertionError(f"{self.name} did not start:\n{self.tail()}")
        threading.Thread(target=self._drain, args=(self._process,), daemon=True).start()

    def _drain(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with self.log.open("a") as log:
            for line in process.stdout:
                log.write(line)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One CLI call."""
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, cwd=ROOT, check=False
        )
        if check:
            assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}\n{self.tail()}"
        return done

    def invite(self) -> str:
        """A fresh invitation."""
        return self.run("invite", str(self.directory)).stdout.splitlines()[0]

    def status(self) -> dict[str, Any]:
        """`shoal status --json`."""
        status: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return status

    def wait(self, devices: int, timeout_s: float = 60.0) -> None:
        """`shoal wait`."""
        self.run(
            "wait", str(self.directory), "--devices", str(devices), "--timeout", str(timeout_s)
        )

    @property
    def running(self) -> bool:
        """True while the node's process lives."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> int:
        """SIGTERM, and wait; returns the exit code."""
        return self._end(signal.SIGTERM)

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
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.name} did not stop:\n{self.tail()}") from None

    def tail(self, lines: int = 40) -> str:
        """The end of the node's log."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.kill()
