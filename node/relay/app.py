"""Wires a relay together and runs it.

    home, identity → storage → link → relay → stats on the home's socket, metrics on localhost

The home holds the relay's identity, its token, `relay.sqlite` and `packs/`. SIGINT and SIGTERM end
it cleanly; whatever else does loses nothing that was confirmed.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from crdt.errors import WorldError
from crdt.ids import DeviceId
from node.home import Home, write_durably
from node.ports import SystemClock, SystemRandom, Threads, TrioThreads
from node.relay.admin import THREADS_MAX, Admin
from node.relay.backup import COPIED_MARK
from node.relay.limits import Limits
from node.relay.policy import Policy, PolicyKind
from node.relay.server import Relay
from node.relay.sqlite_storage import SqliteStorage
from node.relay.stats import Stats, serve_stats
from node.relay.upkeep import RelayClock, Upkeep
from transport.address import Address
from transport.identity import load_or_create
from transport.quic import QuicLink

logger = logging.getLogger("shoal.relay")

DEFAULT_LISTEN: Final = Address("0.0.0.0", 22072)  # noqa: S104 - members are anywhere
MARK_LOOK_S: Final = 60.0
TOKEN_SIZE: Final = 20  # bytes of randomness
TOKEN_FILE: Final = "token"  # noqa: S105 - a file's name


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """How to run a relay."""

    home: Path
    listen: Address = DEFAULT_LISTEN
    policy: PolicyKind = PolicyKind.TOKEN
    owners: frozenset[DeviceId] = frozenset()
    limits: Limits = field(default_factory=Limits)
    metrics: Address | None = None


@dataclass(frozen=True, slots=True)
class RelayReady:
    """The relay runs. `token` is told once, when it was made."""

    device: str
    listening: str
    policy: str
    token: str = field(default="", repr=False)


class AddressInUseError(WorldError):
    """Somebody listens there already."""

    exit_code = 15


def run_relay(options: RelayOptions, ready: Callable[[RelayReady], None]) -> None:
    """Run a relay until it is stopped; `ready` is called once it serves."""
    trio.run(_run, options, ready)


async def _run(options: RelayOptions, ready: Callable[[RelayReady], None]) -> None:
    home = Home(options.home)
    home.lock()
    random, clock = SystemRandom(), SystemClock()
    identity = load_or_create(str(home.identity_path), random.bytes)
    token, made = _token(home, random.bytes)
    threads = TrioThreads(THREADS_MAX)
    storage = SqliteStorage(options.home, threads, random)
    policy = Policy(options.policy, token, options.owners)
    link = QuicLink(identity, options.listen)
    time = RelayClock(options.home, clock)
    mark = options.home / COPIED_MARK
    relay = Relay(
        link,
        identity,
        storage,
        clock,
        policy=policy,
        limits=options.limits,
        time_s=time.now_s,
        is_copy=mark.exists(),
    )
    storage.on_lost = relay.lost
    upkeep = Upkeep(
        storage, time.now_s, relay.counters, gone=relay.gone, grace_s=options.limits.drop_grace_s
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_stopped, nursery.cancel_scope)
            await _listen(nursery, relay, options.listen)
            stats = Stats(relay, storage, identity.device)
            routes = Admin(storage, threads, options.home).routes()
            await nursery.start(serve_stats, stats, options.home, options.metrics, routes)
            nursery.start_soon(upkeep.serve, time)
            nursery.start_soon(_forget_mark, relay, threads, mark)
            told = token if made and options.policy is PolicyKind.TOKEN else ""
            where = str(link.address)
            ready(RelayReady(identity.device.text, where, options.policy.value, told))
    finally:
        storage.close()


async def _forget_mark(relay: Relay, threads: Threads, mark: Path) -> None:
    """A copy (`node.relay.backup`) is one until members have shown where its own logs end."""
    while True:
        if all(hosted.own_log_known for hosted in relay.folders.values()):
            break
        await trio.sleep(MARK_LOOK_S)
    await threads.run(mark.unlink, True)


async def _listen(nursery: trio.Nursery, relay: Relay, listen: Address) -> None:
    async def serve(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            await relay.serve(task_status=task_status)
        except* WorldError as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise AddressInUseError(
                f"cannot listen on {listen}: {error}. Nothing was changed; choose another "
                "address with --listen HOST:PORT."
            ) from error

    await nursery.start(serve)


async def _until_stopped(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            logger.info("stopping: %s", signal.Signals(number).name)
            scope.cancel()
            return


def _token(home: Home, random_bytes: Callable[[int], bytes]) -> tuple[str, bool]:
    """The home's token, and whether it was made just now."""
    path = home.path / TOKEN_FILE
    with contextlib.suppress(OSError, ValueError):
        token = path.read_text(encoding="ascii").strip()
        if token:
            return token, False
    token = base64.b32encode(random_bytes(TOKEN_SIZE)).decode().lower()
    write_durably(path, token.encode())
    return token, True
