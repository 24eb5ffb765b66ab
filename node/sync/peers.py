"""What each peer last said of itself: in memory, and in the index for after a restart."""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import dataclass, replace
from typing import Final

import trio

from crdt.errors import ShoalError
from crdt.ids import DeviceId
from crdt.version_vector import VersionVector
from node.index.peers import PeerRow, PeerRows
from node.sync.folder import Folder

logger = logging.getLogger("shoal.peers")

SAVE_EVERY_S: Final = 30.0  # what a peer tells, which it does with every change


@dataclass(frozen=True, slots=True)
class PeerView:
    """What a peer last said of itself, and when, by our wall clock."""

    connected: bool
    name: str
    have: VersionVector
    complete: VersionVector
    seen_ns: int = 0


class Peers(dict[DeviceId, PeerView]):
    """All peers of one folder; changed by `told` and `gone` alone."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._rows = PeerRows(folder.database.connection)
        self._saved: dict[DeviceId, float] = {}
        for row in self._rows.all():
            self[row.device] = PeerView(False, "", row.have, row.complete, row.seen_ns)

    def told(
        self, device: DeviceId, name: str, have: VersionVector, complete: VersionVector
    ) -> None:
        """A connected peer told its state."""
        self[device] = PeerView(True, name, have, complete, self._folder.clock.wall_ns())
        if trio.current_time() > self._saved.get(device, float("-inf")) + SAVE_EVERY_S:
            self._save(device)

    def gone(self, device: DeviceId) -> None:
        """The connection to a peer ended."""
        seen_ns = self._folder.clock.wall_ns()
        self[device] = replace(self[device], connected=False, seen_ns=seen_ns)
        self._save(device)

    def _save(self, device: DeviceId) -> None:
        """An index that cannot be written loses no more than this."""
        view = self[device]
        self._saved[device] = trio.current_time()
        try:
            with self._folder.transaction():
                self._rows.put(PeerRow(device, view.have, view.complete, view.seen_ns))
        except (sqlite3.Error, ShoalError) as error:
            logger.warning("what a peer said could not be stored: %s", error)
