"""Serves the control API on the home's Unix socket, and on localhost for those with the token.

Hypercorn speaks HTTP; accepting is done here, because hypercorn shields a send from cancellation:
one listener that stops reading would keep the node from ever stopping. So every send has a
deadline. It also keeps a bug in one connection from ending the node.

Both sockets listen before `started()`. Cancel `serve_control` to end it: it takes its files away.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp

from crdt.errors import WorldError
from node.control.address import ControlAddress, bind_unix, load_or_create_token
from node.control.api import create_app, require_token
from node.control.facade import NodeFacade

logger = logging.getLogger("shoal.control")

CONNECTIONS_MAX: Final = 64  # at once, on each socket; a person runs a few programs
BACKLOG: Final = 16
SEND_TIMEOUT_S: Final = 5.0  # local readers take what they asked for at once, or are stuck
HEADERS_SIZE_MAX: Final = 16 * 1024


async def serve_control(
    facade: NodeFacade,
    home: Path,
    *,
    task_status: trio.TaskStatus[ControlAddress] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. Call it with the home's lock held.

    Raises:
        WorldError: no socket can be made there.
    """
    app = create_app(facade)
    unix, path = bind_unix(home)
    with unix, _bind_localhost() as tcp:
        host, port = tcp.getsockname()
        address = ControlAddress(path, f"{host}:{port}")
        guarded = require_token(app, _token(home))
        try:
            async with trio.open_nursery() as nursery:
                for listener, served in ((unix, app), (tcp, guarded)):
                    listener.listen(BACKLOG)
                    nursery.start_soon(serve_app, listener, served)
                address.save(home)
                task_status.started(address)
        finally:
            address.remove(home)


class _HurriedStream:
    """A stream that gives up on a reader that takes nothing for SEND_TIMEOUT_S, and on one that has
    hung up at once: hypercorn would wait for its next request for seconds.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        self.on_eof: Callable[[], Awaitable[None]] | None = None
        self.send_eof = stream.send_eof
        self.aclose = stream.aclose

    async def receive_some(self, size: int) -> bytes:
        data = await self._stream.receive_some(size)
        if not data and self.on_eof is not None:
            await self.on_eof()
        return bytes(data)

    async def send_all(self, data: bytes) -> None:
        with trio.move_on_after(SEND_TIMEOUT_S):
            return await self._stream.send_all(data)
        self.socket.close()
        raise trio.BrokenResourceError("the program on the other side stopped reading")


async def serve_app(listener: socket.socket, app: ASGIApp) -> None:
    """Serve `app` to whoever connects to a listening socket, until cancelled."""
    config = Config()
    config.errorlog = logger
    config.h11_max_incomplete_size = HEADERS_SIZE_MAX
    config.include_server_header = False
    context = WorkerContext(max_requests=None)
    wrapped: AppWrapper = wrap_app(app, 0, "asgi")  # type: ignore[arg-type]
    places = trio.Semaphore(CONNECTIONS_MAX)

    async def handle(stream: trio.SocketStream) -> None:
        try:
            places.acquire_nowait()
        except trio.WouldBlock:
            await stream.aclose()
            return
        try:
            hurried: Any = _HurriedStream(stream)
            server = TCPServer(wrapped, config, context, ConnectionState({}), hurried)
            hurried.on_eof = server.idle_task.stop
            await server
        except Exception:
            logger.exception("a control connection failed; the node goes on")
        finally:
            places.release()

    await trio.serve_listeners(
        handle, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
    )


def _bind_localhost() -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.bind(("127.0.0.1", 0))
    except OSError as error:
        listener.close()
        raise WorldError(f"cannot listen on localhost: {error.strerror}") from error
    return listener


def _token(home: Path) -> str:
    try:
        return load_or_create_token(home)
    except OSError as error:
        raise WorldError(f"cannot write to the home {home}: {error.strerror}") from error
