"""Wires a node together and runs it: the only place that knows every part.

    home, identity → link → (join) → folders: index, files, engine → discovery → control API

Start: lock the home, look at the directory, listen, join or create or resume, then run until
SIGINT, SIGTERM or `shutdown`. Stop: connections say goodbye, the indexes are folded and closed.
"""

from __future__ import annotations

import logging
import signal
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import trio

from crdt.errors import PeerError, WorldError
from crdt.ids import FolderId
from crdt.invitation import Invitation
from discovery import static
from discovery.candidates import Candidates, Source
from discovery.mdns import Mdns
from node.activity.deeds import CONFLICT, Deed
from node.activity.hook import Hook
from node.activity.journal import serve_journal
from node.admission import Ticket, announced, invitation_of, read_ticket
from node.api import Api, progress_of
from node.control.events import EventBus
from node.control.facade import Event
from node.control.options import JoinOptions, Ready, Reporter, UpOptions
from node.control.server import serve_control
from node.home import FolderConfig, Home
from node.open_folder import (
    OpenFolder,
    check_directory,
    create_folder,
    is_present,
    open_folder,
    prepare_directory,
    start_folder,
)
from node.people import deed_info
from node.ports import SystemClock, SystemRandom, TrioThreads
from node.sync.admit import InvitationError, NobodyAnsweredError, ask_to_join
from node.sync.connections import Connections
from node.sync.engine import FolderEngine
from node.sync.spoken import RENDEZVOUS
from transport.address import Address
from transport.identity import Identity, load_or_create, nobody_to_ask
from transport.link import CloseCode, DialError
from transport.quic import QuicLink

logger = logging.getLogger("shoal.app")

DEFAULT_PORT: Final = 22071  # unassigned at IANA
THREADS_MAX: Final = 8  # workers for files and hashes; more would only wait for the disk
JOIN_TIMEOUT_S: Final = 30.0
JOIN_STAGGER_S: Final = 0.5  # between asking at one address and at the next one
_LAST_WORD: Final = frozenset({CloseCode.INVITATION_USED, CloseCode.INVITATION_EXPIRED})
JOIN_PAUSE_S: Final = 0.5  # between two rounds over the addresses
LOG_LINES_MAX: Final = 2_000
PEERS_KEPT_MAX: Final = 16  # addresses remembered for each folder, the newest first
REPORT_EVERY_S: Final = 0.2  # progress, for people
DAY_NS: Final = 24 * 3600 * 10**9


class PortInUseError(WorldError):
    """Somebody listens there already."""

    exit_code = 15


def run_up(options: UpOptions, reporter: Reporter) -> None:
    """Create or resume the folder at `options.directory` and run the node until it is stopped."""
    trio.run(Node(options, reporter).run, None)


def run_join(options: JoinOptions, reporter: Reporter) -> None:
    """Join a folder by an invitation, then run the node as `run_up` does."""
    ticket = read_ticket(options.invitation)
    trio.run(Node(options.up, reporter).run, ticket)


class LogLines(logging.Handler):
    """Keeps the newest lines for `shoal logs`, and tells whoever follows them."""

    def __init__(self, events: EventBus) -> None:
        super().__init__(logging.INFO)
        self._events = events
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.lines: deque[str] = deque(maxlen=LOG_LINES_MAX)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        line = self.format(record)
        self.lines.append(line)
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            return  # from another thread; followers see it when they ask again
        self._events.publish(Event("log", text=line))


class Node:
    """One running node."""

    def __init__(self, options: UpOptions, reporter: Reporter) -> None:
        self.options = options
        self.reporter = reporter
        self.home = Home(options.home)
        self.clock = SystemClock()
        self.random = SystemRandom()
        self.threads = TrioThreads(THREADS_MAX)
        self.folders: dict[FolderId, OpenFolder] = {}
        self.events = EventBus()
        self.log = LogLines(self.events)
        self.hook = Hook(options.home)
        self.stop = trio.Event()
        self.listening: Address | None = None
        self.identity: Identity
        self.link: QuicLink
        self.connections: Connections
        self._engines: dict[FolderId, FolderEngine] = {}
        self._candidates = Candidates()
        self._found: set[Address] = set()  # by discovery, for a join

    async def run(self, ticket: Ticket | None) -> None:
        """Run until stopped."""
        root = logging.getLogger("shoal")
        root.addHandler(self.log)
        root.setLevel(logging.INFO)
        try:
            self.home.lock()
            ask = self.options.passphrase or nobody_to_ask
            self.identity = load_or_create(str(self.home.identity_path), self.random.bytes, ask)
            exposed = self.home.close_to_others()
            known = check_directory(self.options.directory, self.home)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_stopped, nursery.cancel_scope)
                await self._start(nursery, ticket, known)
                for path in exposed:
                    self._warn_exposed(path)
        finally:
            self.events.close()
            for folder in self.folders.values():
                folder.close()
            root.removeHandler(self.log)

    def _warn_exposed(self, path: Path) -> None:
        for folder in self.folders.values():
            folder.engine.warn(
                "",
                f"{path} could be read by other users of this machine; now it cannot. If somebody "
                "may have copied it, remove this device and join again with another home.",
            )

    async def _until_stopped(self, scope: trio.CancelScope) -> None:
        async def wait_for_signal() -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for number in signals:
                    logger.info("stopping: %s", signal.Signals(number).name)
                    self.stop.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_signal)
            await self.stop.wait()
            nursery.cancel_scope.cancel()
        scope.cancel()

    # --- starting -------------------------------------------------------------------------------

    async def _start(
        self, nursery: trio.Nursery, ticket: Ticket | None, known: FolderConfig | None
    ) -> None:
        link, connections = await self._listen(nursery)
        mdns = self._start_discovery(nursery, connections)
        config = known
        if config is None and ticket is not None:
            if mdns is not None:
                mdns.set_folders(announced(ticket))
            invitation = await invitation_of(ticket, link, lambda: self._found, self.random)
            if mdns is not None:
                mdns.set_folders({invitation.folder})
            config = await self._join(link, invitation)
        if config is None:
            config = create_folder(
                self.home,
                self.options.directory,
                self.identity,
                self.options.name,
                self.clock,
                self.random,
            )
        for one in self.home.folders():
            if one.folder == config.folder or is_present(one):
                await self._open(one, nursery, connections)
        if mdns is not None:
            self._announce(mdns)
            connections.spoken.on_change = partial(self._announce, mdns)
        connections.on_connected = self._remember
        connections.open()
        await nursery.start(serve_control, Api(self), self.options.home)
        nursery.start_soon(self._report)
        nursery.start_soon(self.hook.serve)
        joined = known is None and ticket is not None
        self.reporter.ready(
            Ready(config.path, self.identity.device.text, str(self.listening), joined=joined)
        )

    async def _listen(self, nursery: trio.Nursery) -> tuple[QuicLink, Connections]:
        """Listen where asked; where nobody asked, at the usual port or at any other."""
        asked, any_host = self.options.listen, "0.0.0.0"  # noqa: S104 - peers are on the LAN
        tries = [asked] if asked else [Address(any_host, DEFAULT_PORT), Address(any_host, 0)]
        for address in tries:
            link = QuicLink(self.identity, address)
            connections = Connections(
                link,
                self.identity,
                self._engines,
                self._candidates,
                self.clock,
                self.random,
                name=self.options.name,
            )
            try:
                await nursery.start(_serve_plainly, connections)
            except WorldError as error:
                if address is tries[-1]:
                    raise PortInUseError(
                        f"cannot listen on {address}: {error}. Nothing was changed; choose "
                        "another port with --listen HOST:PORT, or leave the option out."
                    ) from error
                continue
            self.listening = link.address
            self.link, self.connections = link, connections
            return link, connections
        raise AssertionError("the last try returns or raises")

    def _start_discovery(self, nursery: trio.Nursery, connections: Connections) -> Mdns | None:
        now = trio.current_time()

        def add(source: Source, address: Address) -> None:
            self._found.add(address)
            self._candidates.add(address, source, trio.current_time())
            connections.wake.ring()

        peers = self.options.peers
        nursery.start_soon(static.serve, peers, lambda address: add(Source.STATIC, address))
        for config in self.home.folders():
            for host, port in config.peers:
                self._candidates.add(Address(host, port), Source.KNOWN, now)
        if not self.options.lan or self.listening is None:
            return None
        mdns = Mdns(self.listening.port, day=lambda: self.clock.wall_ns() // DAY_NS)
        nursery.start_soon(mdns.serve, lambda address, _folder: add(Source.MDNS, address))
        return mdns

    def _announce(self, mdns: Mdns) -> None:
        """Announce our folders, and that a spoken code is open while one is."""
        open_code = {RENDEZVOUS} if self.connections.spoken.is_open else set()
        mdns.set_folders({*self.folders, *open_code})

    async def _join(self, link: QuicLink, invitation: Invitation) -> FolderConfig:
        """Ask whoever can be reached to let us in; only then touch the directory."""
        for one in self.home.folders():
            if one.folder == invitation.folder:
                raise InvitationError(
                    f"this home has that folder already, at {one.path}. Nothing was changed; run "
                    f"`shoal up {one.path}`."
                )
        addresses = {Address(host, port) for host, port in invitation.addresses}
        reasons: dict[str, str] = {}
        entries: list[bytes] | None = None
        with trio.move_on_after(JOIN_TIMEOUT_S):
            while entries is None:
                places = sorted(addresses | self._found)
                entries = await self._ask_to_join(link, places, invitation, reasons)
                if entries is None:
                    await trio.sleep(JOIN_PAUSE_S)
        if entries is None:
            tried = "; ".join(f"{where}: {why}" for where, why in sorted(reasons.items()))
            raise NobodyAnsweredError(
                f"no device of the folder answered within {JOIN_TIMEOUT_S:.0f} s "
                f"({tried or 'no address is known'}). Nothing was changed here. Is the other node "
                "running? Name its address with --peer HOST:PORT."
            )
        marker = prepare_directory(self.options.directory, self.random)
        config = FolderConfig(
            invitation.folder,
            str(self.options.directory),
            bytes(marker),
            invitation_seed=invitation.secret,
            peers=tuple((a.host, a.port) for a in sorted(addresses)),
        )
        self.home.save_roster(invitation.folder, entries)
        self.home.save(config)
        for address in addresses:
            self._candidates.add(address, Source.INVITATION, trio.current_time())
        return config

    async def _ask_to_join(
        self,
        link: QuicLink,
        places: Sequence[Address],
        invitation: Invitation,
        reasons: dict[str, str],
    ) -> list[bytes] | None:
        """Ask at each address, one soon after the other: those before may be asleep. The first
        that admits us counts; `reasons` gets why the others do not.
        """
        answers: list[list[bytes]] = []
        refused: list[DialError | InvitationError] = []

        async def ask(address: Address) -> None:
            me = self.identity, self.options.name
            try:
                answers.append(await ask_to_join(link, address, invitation, *me))
            except InvitationError as error:
                refused.append(error)
            except DialError as error:
                reasons[str(address)] = error.reason
                refused.append(error)
                if error.code not in _LAST_WORD:
                    return  # it sleeps; or it is a relay that was wiped, and another knows us
            except PeerError as error:
                reasons[str(address)] = str(error)
                return
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for address in places:
                nursery.start_soon(ask, address)
                await trio.sleep(JOIN_STAGGER_S)
        if answers:
            return answers[0]
        for error in refused:
            if isinstance(error, InvitationError):
                raise error
            _raise_if_refused(error)
        return None

    async def _open(
        self, config: FolderConfig, nursery: trio.Nursery, connections: Connections
    ) -> None:
        opened = open_folder(
            config, self.home, self.identity, self.clock, self.random, self.threads
        )
        self.folders[config.folder] = opened
        await start_folder(
            opened.engine,
            self._engines,
            connections,
            nursery,
            save_roster=partial(self._save_roster, opened),
        )

        nursery.start_soon(
            partial(
                serve_journal,
                opened.engine,
                partial(self._tell, opened.engine),
                wanted=lambda: bool(self.events.listeners or self.hook.command),
            )
        )

    def _save_roster(self, opened: OpenFolder, entries: Sequence[bytes]) -> None:
        config = opened.config
        self.home.save_roster(config.folder, entries)
        if config.invitation_seed is not None and opened.engine.folder.opens_all_itself():
            # A secret that nobody needs any more is one that nobody can steal.
            opened.config = replace(config, invitation_seed=None)
            self.home.save(opened.config)

    def _tell(self, engine: FolderEngine, deeds: list[Deed]) -> None:
        """New deeds, for whoever listens; the hook hears what others did."""
        folder = engine.folder.id.hex()
        for deed in deeds:
            info = deed_info(engine, deed)
            self.events.publish(Event("deed", folder=folder, deed=info))
            if deed.device != self.identity.device or deed.action == CONFLICT:
                told = {"action": info.action, "path": info.path, "name": info.name}
                about = {"device": info.device, "about": info.about or "", "folder": engine.path}
                self.hook.tell({**told, **about})

    def _remember(self, engine: FolderEngine, address: Address) -> None:
        """Where a peer was: it is dialled first after a restart, when it may still think that we
        are connected.
        """
        opened = self.folders[engine.folder.id]
        place = (address.host, address.port)
        if place not in opened.config.peers[:PEERS_KEPT_MAX]:
            peers = (place, *opened.config.peers)[:PEERS_KEPT_MAX]
            opened.config = replace(opened.config, peers=peers)
            self.home.save(opened.config)

    # --- while it runs --------------------------------------------------------------------------

    async def _report(self) -> None:
        """Tell the reporter of progress and new warnings, and listeners that something changed."""
        told: set[str] = set()
        while True:
            for opened in self.folders.values():
                self.reporter.progress(progress_of(opened.engine))
                self.events.publish(Event("status", folder=opened.config.folder.hex()))
                for path, message in opened.engine.warnings.items():
                    line = message if path == message else f"{path}: {message}"
                    if line not in told:
                        told.add(line)
                        self.reporter.warning(line)
                        where = "" if path == message else path
                        self.events.publish(
                            Event("warning", message, opened.config.folder.hex(), where)
                        )
                if opened.engine.stopped and opened.engine.stopped not in told:
                    told.add(opened.engine.stopped)
                    self.reporter.warning(f"{opened.config.path} stopped. {opened.engine.stopped}")
            await self._wait_for_change()
            await trio.sleep(REPORT_EVERY_S)

    async def _wait_for_change(self) -> None:
        """Return when any folder's state changed."""

        async def wait_one(engine: FolderEngine) -> None:
            await engine.changed.wait_past(engine.changed.count)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for opened in self.folders.values():
                nursery.start_soon(wait_one, opened.engine)


async def _serve_plainly(
    connections: Connections, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """`Connections.serve`, whose only error comes without its groups."""
    try:
        await connections.serve(task_status=task_status)
    except* WorldError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def _raise_if_refused(error: DialError) -> None:
    """A member that answers and says no has the last word."""
    why = {
        CloseCode.NOT_A_MEMBER: "it is not known there; it may be mistyped, or of another folder",
        CloseCode.INVITATION_USED: "it was used up or taken back already",
        CloseCode.INVITATION_EXPIRED: "it has expired",
    }
    if error.code in why:
        raise InvitationError(
            f"the invitation was not accepted: {why[error.code]}. Nothing was changed here; ask "
            "for a new one (`shoal invite`)."
        )
