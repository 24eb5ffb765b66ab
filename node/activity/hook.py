"""Runs a command of the person's choice for what others do: a desktop notification, say.

The command line is the person's own, split once and never given to a shell; what happened stands in
environment variables, so nothing that a peer wrote becomes part of a command:

    SHOAL_ACTION  SHOAL_PATH  SHOAL_NAME  SHOAL_DEVICE  SHOAL_ABOUT  SHOAL_FOLDER

One runs at a time. A command that fails or takes too long is a line in the node's log; what comes
while QUEUE_MAX wait is left out.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from pathlib import Path
from typing import Final

import trio

from crdt.errors import CallerError
from node.home import write_durably
from node.sync.bell import Bell

logger = logging.getLogger("shoal.hook")

QUEUE_MAX: Final = 100
TIMEOUT_S: Final = 30.0
COMMAND_SIZE_MAX: Final = 4096  # characters


class Hook:
    """The command of one home, and what waits for it."""

    def __init__(self, home: Path) -> None:
        self._path = home / "hook"
        self.ran = Bell()  # after each command
        self._send, self._receive = trio.open_memory_channel[dict[str, str]](QUEUE_MAX)
        try:
            self.command = self._path.read_text()
        except OSError:
            self.command = ""

    def set(self, command: str) -> None:
        """Use another command from now on, "" for none; remembered over restarts.

        Raises:
            CallerError: it is no command line.
        """
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise CallerError(f"'{command}' is no command: {error}; nothing was changed") from None
        if command.strip() and not words:
            raise CallerError("the command is empty; nothing was changed")
        if len(command) > COMMAND_SIZE_MAX or "\0" in command:
            raise CallerError("the command is too long or holds a NUL; nothing was changed")
        write_durably(self._path, command.encode())
        self.command = command

    def tell(self, facts: dict[str, str]) -> None:
        """Have the command run with these facts, soon."""
        if self.command.strip():
            try:
                self._send.send_nowait(facts)
            except trio.WouldBlock:
                logger.warning("the hook is too slow; something that happened is left out")

    async def serve(self) -> None:
        """Run the command for what is told, until cancelled."""
        async for facts in self._receive:
            words = shlex.split(self.command)
            if words:
                await _run(words, facts)
                self.ran.ring()


async def _run(words: list[str], facts: dict[str, str]) -> None:
    names = {f"SHOAL_{name.upper()}": value.replace("\0", "") for name, value in facts.items()}
    environment = {**os.environ, **names}
    try:
        with trio.fail_after(TIMEOUT_S):
            done = await trio.run_process(
                words, env=environment, check=False, stdin=subprocess.DEVNULL,
                capture_stdout=True, capture_stderr=True,
            )  # fmt: skip
    except trio.TooSlowError:
        logger.warning("the hook took more than %.0f s and was ended", TIMEOUT_S)
    except OSError as error:
        logger.warning("the hook cannot be run: %s", error)
    else:
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-200:]
            logger.warning("the hook failed with %s: %s", done.returncode, said)
