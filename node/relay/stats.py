"""What a running relay tells whoever runs it: JSON on the home's socket, metrics on localhost.

    GET /stats      everything, as JSON                on the home's Unix socket
    GET /metrics    the same in Prometheus' format     on the address given by --metrics

Neither names a file: a relay knows none. Folders and devices appear by their ids.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from crdt.errors import WorldError
from crdt.ids import DeviceId
from node.control.address import ControlAddress, bind_unix
from node.control.server import BACKLOG, serve_app
from node.control.shapes import dumps
from node.relay.limits import Counters
from node.relay.server import Relay
from node.relay.storage import Storage
from transport.address import Address


@dataclasses.dataclass(frozen=True, slots=True)
class FolderStats:
    """One folder. Sizes are bytes as they came over the wire."""

    folder: str
    members: int
    connected: int
    entries: int
    entry_bytes: int
    blocks: int
    block_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class RelayStats:
    """The relay as a whole."""

    device: str
    folders: tuple[FolderStats, ...]
    counters: Counters


class Stats:
    """Collects."""

    def __init__(self, relay: Relay, storage: Storage, device: DeviceId) -> None:
        self._relay = relay
        self._storage = storage
        self._device = device

    async def collect(self) -> RelayStats:
        """What is true now."""
        folders = []
        for folder, hosted in list(self._relay.folders.items()):
            usage = await self._storage.usage(folder)
            members = hosted.roster.members
            folders.append(
                FolderStats(
                    folder=folder.hex(),
                    members=len(members),
                    connected=len(self._relay.connected & members.keys()),
                    entries=usage.entries,
                    entry_bytes=usage.entry_bytes,
                    blocks=usage.blocks,
                    block_bytes=usage.block_bytes,
                )
            )
        return RelayStats(self._device.text, tuple(folders), self._relay.counters)


def metrics_text(stats: RelayStats) -> str:
    """`stats` in Prometheus' text format."""
    return "\n".join([*_lines(stats), ""])


def _lines(stats: RelayStats) -> Iterator[str]:
    for field in dataclasses.fields(stats.counters):
        kind = "counter" if field.name.endswith("_total") else "gauge"
        yield f"# TYPE shoal_relay_{field.name} {kind}"
        yield f"shoal_relay_{field.name} {getattr(stats.counters, field.name)}"
    for name in ("members", "connected", "entries", "entry_bytes", "blocks", "block_bytes"):
        yield f"# TYPE shoal_relay_folder_{name} gauge"
        for one in stats.folders:
            yield f'shoal_relay_folder_{name}{{folder="{one.folder[:16]}"}} {getattr(one, name)}'


async def serve_stats(
    stats: Stats,
    home: Path,
    metrics: Address | None,
    more: Sequence[Route],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until cancelled, on the socket with `more` too. Call it with the home's lock held.

    Raises:
        WorldError: an address cannot be listened on.
    """

    async def show(_: Request) -> Response:
        return Response(dumps(await stats.collect()), media_type="application/json")

    async def measure(_: Request) -> Response:
        return PlainTextResponse(metrics_text(await stats.collect()))

    unix, path = bind_unix(home)
    tcp = None if metrics is None else _bind(metrics)
    address = ControlAddress(path, "" if metrics is None else str(metrics))
    try:
        with unix:
            async with trio.open_nursery() as nursery:
                unix.listen(BACKLOG)
                routes = [Route("/stats", show), *more]
                nursery.start_soon(serve_app, unix, Starlette(routes=routes))
                if tcp is not None:
                    tcp.listen(BACKLOG)
                    public = [Route("/metrics", measure)]
                    nursery.start_soon(serve_app, tcp, Starlette(routes=public))
                address.save(home)
                task_status.started()
    finally:
        address.remove(home)
        if tcp is not None:
            tcp.close()


def _bind(address: Address) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
    except OSError as error:
        listener.close()
        raise WorldError(f"cannot serve metrics on {address}: {error.strerror}") from error
    return listener
