"""A home: where a device keeps what is not the folder itself.

    identity                the device's key, 0600
    lock                    held while a node runs
    folders/<id>/config     one synced folder: where it lies, its root's marker, how we joined
    folders/<id>/roster     its roster entries, so that an index can be rebuilt
    folders/<id>/index.sqlite

Every file is written whole to a temporary name, fsynced and renamed. A damaged file is reported and
left alone.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from crdt.codec import pack, unpack
from crdt.entry import Entry
from crdt.errors import CallerError, IntegrityError, WorldError
from crdt.ids import FolderId
from crdt.seal import SEED_SIZE
from node.files.root_marker import RootId

CONFIG_SIZE_MAX: Final = 64 * 1024
ROSTER_SIZE_MAX: Final = 64 * 1024 * 1024
ROSTER_ENTRIES_MAX: Final = 65_536
PORT_MAX: Final = 65_535
_FORMAT: Final = 1


class HomeInUseError(CallerError):
    """Another node runs with this home."""

    exit_code = 12


@dataclass(frozen=True, slots=True)
class FolderConfig:
    """What a device must know of a folder before its index is open."""

    folder: FolderId
    path: str
    marker: bytes
    invitation_seed: bytes | None = None
    peers: tuple[tuple[str, int], ...] = ()
    paused: bool = False

    def to_bytes(self) -> bytes:
        """See `from_bytes`."""
        peers = [[host, port] for host, port in self.peers]
        return pack(
            [
                _FORMAT,
                self.folder,
                self.path,
                self.marker,
                self.invitation_seed,
                peers,
                self.paused,
            ]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> FolderConfig:
        """Strictly parse `to_bytes`; raises ValueError on anything else."""
        match unpack(data, size_max=CONFIG_SIZE_MAX):
            case [1, bytes(folder), str(path), bytes(marker), seed, list(peers), bool(paused)]:
                addresses = tuple(_parse_peer(peer) for peer in peers)
            case _:
                raise ValueError("not a folder's configuration")
        if not path or "\0" in path:
            raise ValueError("it names no directory")
        if seed is not None and (type(seed) is not bytes or len(seed) != SEED_SIZE):
            raise ValueError(f"an invitation's seed has {SEED_SIZE} bytes")
        return cls(FolderId(folder), path, RootId(marker), seed, addresses, paused)


def _parse_peer(wire: object) -> tuple[str, int]:
    match wire:
        case [str(host), int(port)] if host and host.isprintable() and 0 < port <= PORT_MAX:
            return host, port
        case _:
            raise ValueError("a peer's address is a host and a port")


class Home:
    """One home directory, created on first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[bytes] | None = None
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise WorldError(f"cannot use the home {path}: {error.strerror}") from error

    @property
    def identity_path(self) -> Path:
        """Where the device's key lies."""
        return self.path / "identity"

    def close_to_others(self) -> list[Path]:
        """Take what is secret from other users of this machine, where its modes let them have it.

        Returns: the files that they could read so far. A file that cannot be changed is named too.
        """
        exposed = []
        secret = [self.identity_path, *self.path.glob("folders/*/config")]
        for path in (*secret, *self.path.glob("folders/*")):
            try:
                mode = stat.S_IMODE(path.stat().st_mode)
                if mode & 0o077:
                    path.chmod(mode & 0o700)
                    exposed += [path] if path in secret else []
            except FileNotFoundError:
                continue
            except OSError:
                exposed.append(path)
        return exposed

    def lock(self) -> None:
        """Keep other nodes out until the process ends.

        Raises:
            HomeInUseError: a node runs with this home already.
        """
        handle = (self.path / "lock").open("ab")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.close()
            raise HomeInUseError(
                f"a node is already running with the home {self.path}. Nothing was changed. "
                "Stop it first, or choose another home with --home."
            ) from None
        self._lock = handle

    def unlock(self) -> None:
        """Let others in again."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def folders(self) -> Iterator[FolderConfig]:
        """Every folder of this device.

        Raises:
            IntegrityError: a configuration is damaged; it is left as it is.
        """
        for path in sorted(self.path.glob("folders/*/config")):
            try:
                config = FolderConfig.from_bytes(path.read_bytes())
                self._check_place(config, path.parent)
            except ValueError as error:
                raise IntegrityError(
                    f"{path} is damaged ({error}). The folder's files are safe and were not "
                    "touched; move the file away and join the folder again."
                ) from None
            yield config

    def _check_place(self, config: FolderConfig, directory: Path) -> None:
        if self.directory(config.folder) != directory:
            raise ValueError("it is another folder's")

    def directory(self, folder: FolderId) -> Path:
        """Where the folder's configuration and index lie."""
        return self.path / "folders" / folder.hex()[:32]

    def index_path(self, folder: FolderId) -> Path:
        """The folder's index."""
        return self.directory(folder) / "index.sqlite"

    def save(self, config: FolderConfig) -> None:
        """Store a folder's configuration durably."""
        write_durably(self.directory(config.folder) / "config", config.to_bytes())

    def save_roster(self, folder: FolderId, entries: Sequence[bytes]) -> None:
        """Store the folder's roster entries durably."""
        write_durably(self.directory(folder) / "roster", pack(list(entries)))

    def roster(self, folder: FolderId) -> list[bytes]:
        """The stored roster entries, without those that are damaged."""
        try:
            data = (self.directory(folder) / "roster").read_bytes()
            entries = unpack(data, size_max=ROSTER_SIZE_MAX, items_max=ROSTER_ENTRIES_MAX)
        except (OSError, ValueError):
            return []
        return [one for one in entries if _is_sound(one)] if isinstance(entries, list) else []


def _is_sound(entry: object) -> bool:
    """True for an entry that is still what its author signed; nobody else looks at it again."""
    if not isinstance(entry, bytes):
        return False
    try:
        return Entry.from_bytes(entry).verify_signature()
    except ValueError:
        return False


def write_durably(path: Path, data: bytes) -> None:
    """Replace a small private file: old or new, never a mix, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
