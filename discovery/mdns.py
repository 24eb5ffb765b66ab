"""Finds peers on the LAN: announces which folders are here, and reports who announces the same.

What is announced as `_shoal._udp` is an instance name that is random for each day and run, a port,
addresses, and one tag a folder (`candidates.folder_tag`): neither a device nor a folder that a
stranger could follow. What is heard is a hint and never an identity.

Concurrency: zeroconf needs asyncio, so it lives in one thread with an event loop of its own, which
shares nothing with trio's thread but `_Wanted` (replaced as a whole, never changed) and calls that
are posted from one loop to the other. `serve` owns that thread: it ends before `serve` does.

Failure: discovery is a convenience, so nothing here ends the node. A network that cannot multicast
(no interface but loopback, no permission) is a warning, and is tried again; so is every error that
zeroconf raises. Interfaces that come and go are looked for every INTERFACES_EVERY_S.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 (zeroconf needs it; this module is the one that wraps it)
import contextlib
import ipaddress
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import ifaddr
import trio
from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from crdt.ids import FolderId
from discovery.candidates import TAG_LENGTH, folder_tag, tags_of
from transport.address import Address

logger = logging.getLogger("shoal.discovery")

SERVICE_TYPE: Final = "_shoal._udp.local."
TXT_VERSION: Final = "1"
FOLDERS_MAX: Final = 64  # announced; their tags stay below 1 KiB of TXT, in one packet
TAGS_PER_KEY: Final = 16  # a TXT string has at most 255 bytes
INTERFACES_EVERY_S: Final = 5.0  # a laptop that is opened expects its peers within seconds
RESOLVE_TIMEOUT_MS: Final = 3000
RESOLVING_MAX: Final = 64  # instances looked up at once; more are dropped and announce again
HEARD_MAX: Final = 1024  # instances remembered, for when a folder is added or the day changes
REPORT_EVERY_S: Final = 600.0  # hints are repeated while they stand, lest they seem outdated
ADDRESSES_PER_PEER_MAX: Final = 8
STOP_TIMEOUT_S: Final = 2.0  # for goodbyes; a hint may outlive us anyway

OnCandidate = Callable[[Address, FolderId], None]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What to announce and to look for; both threads read it, trio's replaces it."""

    day: int
    folders: frozenset[FolderId]

    def properties(self) -> dict[str | bytes, str | bytes | None]:
        tags = sorted(folder_tag(folder, self.day) for folder in self.folders)[:FOLDERS_MAX]
        groups = [tags[i : i + TAGS_PER_KEY] for i in range(0, len(tags), TAGS_PER_KEY)]
        properties: dict[str | bytes, str | bytes | None] = {"v": TXT_VERSION}
        properties.update((f"t{i}", "".join(group)) for i, group in enumerate(groups))
        return properties


class Mdns:
    """One node's announcement and its ear; see the module."""

    def __init__(
        self,
        port: int,
        *,
        day: Callable[[], int],
        interfaces: Sequence[str] | None = None,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Args:
        port: UDP port to announce.
        day: Days since 1970-01-01 UTC, asked every few seconds; called in another thread too.
        interfaces: IP addresses of the interfaces to use; None: all but loopback.
        random: Draws the instance's name.
        """
        self._port = port
        self._day = day
        self._interfaces = None if interfaces is None else tuple(interfaces)
        self._random = random
        self._wanted = _Wanted(day(), frozenset())
        self._loop: asyncio.AbstractEventLoop | None = None
        self._nudge: asyncio.Event | None = None
        self._stopping = False

    def set_folders(self, folders: Iterable[FolderId]) -> None:
        """Announce and look for exactly these from now on."""
        self._wanted = _Wanted(self._day(), frozenset(folders))
        self._post_nudge()

    async def serve(self, on_candidate: OnCandidate) -> None:
        """Run until cancelled.

        Args:
            on_candidate: Called in trio's thread with an address and the folder announced there;
                repeatedly for the same when it is announced anew.
        """
        token = trio.lowlevel.current_trio_token()

        def report(addresses: list[Address], folders: list[FolderId]) -> None:
            for address in addresses:
                for folder in folders:
                    on_candidate(address, folder)

        def post(addresses: list[Address], folders: list[FolderId]) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(report, addresses, folders)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_thread, post)
            try:
                await trio.sleep_forever()
            finally:
                self._stopping = True
                self._post_nudge()

    # --- between the threads --------------------------------------------------------------------

    async def _run_thread(self, post: Callable[[list[Address], list[FolderId]], None]) -> None:
        """The thread ends by itself once `_stopping` is seen, within STOP_TIMEOUT_S or so."""
        limiter = trio.CapacityLimiter(1)  # it lives as long as we do: it must not take a worker's
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: asyncio.run(self._main(post)), limiter=limiter)

    def _post_nudge(self) -> None:
        loop, nudge = self._loop, self._nudge
        if loop is not None and nudge is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody to nudge
                loop.call_soon_threadsafe(nudge.set)

    # --- zeroconf's thread ----------------------------------------------------------------------

    async def _main(self, post: Callable[[list[Address], list[FolderId]], None]) -> None:
        self._loop, self._nudge = asyncio.get_running_loop(), asyncio.Event()
        warned = ""
        while not self._stopping:
            try:
                await _Presence(self, post, self._nudge).run()
            except (OSError, ZeroconfError, RuntimeError) as error:
                if str(error) != warned:
                    logger.warning("cannot find peers on the LAN for now: %s", error)
                warned = str(error)
                await _wait(self._nudge, INTERFACES_EVERY_S)

    @property
    def stopping(self) -> bool:
        """True once `serve` was cancelled."""
        return self._stopping

    @property
    def port(self) -> int:
        """What to announce."""
        return self._port

    def wanted_now(self) -> _Wanted:
        """What to announce and to look for on this day."""
        wanted, day = self._wanted, self._day()
        return wanted if wanted.day == day else _Wanted(day, wanted.folders)

    def interfaces(self) -> list[str]:
        """IP addresses of the interfaces to use, for listening and to announce."""
        if self._interfaces is None:
            return lan_addresses()
        # Zeroconf leaks a socket when it is given an address that is not there.
        return [address for address in self._interfaces if address in local_addresses()]

    def instance(self) -> str:
        """A fresh name that says nothing."""
        return self._random(8).hex()


class _Presence:
    """One life of a Zeroconf object, on one set of interfaces: announces, browses, reports."""

    def __init__(
        self,
        mdns: Mdns,
        post: Callable[[list[Address], list[FolderId]], None],
        nudge: asyncio.Event,
    ) -> None:
        self._mdns = mdns
        self._post = post
        self._nudge = nudge
        self._addresses = mdns.interfaces()
        if not self._addresses:
            raise OSError("no network interface is up")
        self._ours: set[str] = set()
        self._heard: dict[str, AsyncServiceInfo] = {}
        self._resolving: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until `stopping`, or until the interfaces have changed."""
        zeroconf = AsyncZeroconf(interfaces=self._addresses, ip_version=_version(self._addresses))
        try:
            await self._serve(zeroconf)
        finally:
            for task in self._resolving.values():
                task.cancel()
            with contextlib.suppress(OSError, ZeroconfError, asyncio.TimeoutError):
                await asyncio.wait_for(zeroconf.async_close(), STOP_TIMEOUT_S)

    async def _serve(self, zeroconf: AsyncZeroconf) -> None:
        announced: tuple[_Wanted, AsyncServiceInfo] | None = None
        browser: AsyncServiceBrowser | None = None
        loop, report_at_s = asyncio.get_running_loop(), 0.0
        while not self._mdns.stopping and self._mdns.interfaces() == self._addresses:
            wanted = self._mdns.wanted_now()
            if announced is None or announced[0] != wanted:
                info = self._info(wanted)
                self._ours.add(info.name)
                if announced is not None:
                    await zeroconf.async_unregister_service(announced[1])
                # The name is 64 random bits, so there is nobody to probe for (RFC 6762 section 8.1)
                # and the announcement goes out at once.
                await zeroconf.async_register_service(info, cooperating_responders=True)
                announced, report_at_s = (wanted, info), 0.0
            if loop.time() >= report_at_s:
                report_at_s = loop.time() + REPORT_EVERY_S
                for heard in self._heard.values():
                    self._report(heard)
            if browser is None:
                browser = AsyncServiceBrowser(
                    zeroconf.zeroconf, SERVICE_TYPE, handlers=[self._on_change]
                )
            await _wait(self._nudge, INTERFACES_EVERY_S)

    def _info(self, wanted: _Wanted) -> AsyncServiceInfo:
        instance = self._mdns.instance()
        return AsyncServiceInfo(
            SERVICE_TYPE,
            f"{instance}.{SERVICE_TYPE}",
            port=self._mdns.port,
            properties=wanted.properties(),
            server=f"{instance}.local.",  # never the machine's own name
            parsed_addresses=self._addresses,
        )

    def _on_change(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """Zeroconf heard of an instance; look up what it says."""
        if name in self._ours:
            return
        if state_change is ServiceStateChange.Removed:
            self._heard.pop(name, None)
            return
        if name in self._resolving or len(self._resolving) >= RESOLVING_MAX:
            return
        task = asyncio.create_task(self._resolve(zeroconf, service_type, name))
        self._resolving[name] = task
        task.add_done_callback(lambda _: self._resolving.pop(name, None))

    async def _resolve(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        info = AsyncServiceInfo(service_type, name)
        try:
            found = await info.async_request(zeroconf, RESOLVE_TIMEOUT_MS)
        except (OSError, ZeroconfError, ValueError) as error:
            logger.debug("what %s announces cannot be read: %s", name, error)
            return
        if found:
            self._heard.pop(name, None)
            if len(self._heard) < HEARD_MAX:
                self._heard[name] = info
            self._report(info)

    def _report(self, info: AsyncServiceInfo) -> None:
        wanted = self._mdns.wanted_now()
        known = tags_of(wanted.folders, wanted.day)
        folders = {known[tag] for tag in _tags(info) if tag in known}
        addresses = _addresses(info)
        if folders and addresses:
            self._post(addresses, sorted(folders))


def local_addresses() -> set[str]:
    """All addresses of this machine's interfaces."""
    return {
        one.ip if isinstance(one.ip, str) else one.ip[0]
        for adapter in ifaddr.get_adapters()
        for one in adapter.ips
    }


def lan_addresses() -> list[str]:
    """Those of them that a peer can use: no loopback, and of IPv6 only what means the same on every
    interface; sorted.
    """
    return sorted(text for text in local_addresses() if _is_lan(ipaddress.ip_address(text)))


def _is_lan(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return not (address.is_loopback or address.is_link_local or address.is_unspecified)


def _version(addresses: Iterable[str]) -> IPVersion:
    versions = {ipaddress.ip_address(address).version for address in addresses}
    if versions == {4, 6}:
        return IPVersion.All
    return IPVersion.V4Only if versions == {4} else IPVersion.V6Only


def _tags(info: AsyncServiceInfo) -> list[str]:
    """The tags in a TXT record; whatever else it holds is ignored."""
    tags: list[str] = []
    for i in range(-(-FOLDERS_MAX // TAGS_PER_KEY)):
        value = info.properties.get(b"t%d" % i) or b""
        text = value.decode("ascii", errors="replace")
        tags += (text[at : at + TAG_LENGTH] for at in range(0, len(text), TAG_LENGTH))
    return tags


def _addresses(info: AsyncServiceInfo) -> list[Address]:
    """Where it says to be, without what cannot be dialled."""
    found: list[Address] = []
    for text in info.parsed_addresses()[:ADDRESSES_PER_PEER_MAX]:
        address = ipaddress.ip_address(text)
        if info.port and not (address.is_multicast or address.is_unspecified):
            found.append(Address(text, info.port))
    return found


async def _wait(nudge: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(nudge.wait(), timeout_s)
    nudge.clear()
