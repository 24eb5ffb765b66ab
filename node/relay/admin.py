"""What whoever runs a relay asks of it, on its socket or with the relay stopped.

    POST /check               read everything; see `node.relay.check`
    POST /backup  {directory} copy the home; see `node.relay.backup`

An error answers with `node.control.errors.to_message`, as a node's own API.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from crdt.errors import CallerError, ShoalError
from node.control.errors import to_message
from node.control.shapes import dumps
from node.home import Home
from node.ports import SystemRandom, Threads, TrioThreads
from node.relay.backup import Copied, back_up
from node.relay.check import Checked, check
from node.relay.sqlite_storage import SqliteStorage

logger = logging.getLogger("shoal.relay")

THREADS_MAX = 8

T = TypeVar("T")


class Admin:
    """See the module."""

    def __init__(self, storage: SqliteStorage, threads: Threads, home: Path) -> None:
        self._storage = storage
        self._threads = threads
        self._home = home

    async def check(self) -> Checked:
        """Read everything; what is damaged is forgotten, and brought again by members."""
        return await check(self._storage, self._threads)

    async def back_up(self, directory: Path) -> Copied:
        """Copy the home. Raises CallerError, WorldError: see `node.relay.backup`."""
        async with self._storage.packs_stay:
            return await self._threads.run(back_up, self._home, directory)

    def routes(self) -> list[Route]:
        """For the home's socket."""

        async def on_check(_: Request) -> Response:
            return await _answer(self.check)

        async def on_backup(request: Request) -> Response:
            async def work() -> Copied:
                match json.loads(await request.body()):
                    case {"directory": str(directory)} if Path(directory).is_absolute():
                        return await self.back_up(Path(directory))
                    case _:
                        raise CallerError("'directory' is missing or no absolute path")

            return await _answer(work)

        post = ["POST"]
        return [Route("/check", on_check, methods=post), Route("/backup", on_backup, methods=post)]


async def _answer(work: Callable[[], Awaitable[object]]) -> Response:
    try:
        return Response(dumps(await work()), media_type="application/json")
    except ShoalError as error:
        logger.warning("%s", error)
        return Response(dumps(to_message(error)), status_code=400, media_type="application/json")


def with_stopped_relay(home: Path, work: Callable[[Admin], Awaitable[T]]) -> T:
    """Do it to a relay that does not run.

    Raises:
        CallerError: no relay lies there, or one runs.
        ShoalError: what `work` raises.
    """
    if not (home / "relay.sqlite").exists():
        raise CallerError(f"no relay lies in {home}; name its home with --home")

    async def run() -> T:
        threads = TrioThreads(THREADS_MAX)
        storage = SqliteStorage(home, threads, SystemRandom())
        try:
            return await work(Admin(storage, threads, home))
        finally:
            storage.close()

    held = Home(home)
    held.lock()
    try:
        return trio.run(run)
    finally:
        held.unlock()
