"""Makes a folder ready to run: directory, index, engine.

Nothing here deletes. A directory that is not what it should be is refused with a reason; a damaged
index is moved aside and rebuilt from what can be read of it, the stored roster, the disk and peers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from crdt.errors import CallerError, PeerError
from crdt.ids import FolderId
from crdt.roster_make import genesis_ops
from node.files.disk import DiskFileSystem
from node.files.ignore import TEXT_BYTES_MAX
from node.files.layout import NO_MERGE_FILE, ROOT_MARKER, TMP
from node.files.port import FileSystem
from node.files.portable_names import Personality, probe
from node.files.root_marker import RootId, create_root_marker, make_layout
from node.files.watcher import DiskWatcher, Watcher
from node.history.settings import load_policy
from node.home import FolderConfig, Home
from node.index.damage import DamagedIndexError
from node.index.database import Database, move_aside, open_database
from node.index.place import is_copy, note_place
from node.ports import Clock, Random, Threads
from node.sync.connections import Connections
from node.sync.engine import FolderEngine
from node.sync.folder import Folder
from node.sync.intake import Intake
from node.sync.keys import tend_keys
from transport.identity import Identity

logger = logging.getLogger("shoal.open")

COPIED: Final = (
    "this device's home is a copy: restored from a backup, cloned, or moved. What this device "
    "wrote since is asked for first, so nothing is written until another device is connected; "
    "nothing is lost. If the original still runs elsewhere, stop it: two copies of one device get "
    "in each other's way."
)
SALVAGE_BATCH: Final = 64  # entries taken over from a damaged index at once


class DirectoryError(CallerError):
    """The directory cannot be this folder's."""

    exit_code = 13


@dataclass(frozen=True, slots=True)
class Ports:
    """Who this node is, and its ways to the world that all of its folders share."""

    identity: Identity
    clock: Clock
    random: Random
    threads: Threads


@dataclass(slots=True)
class OpenFolder:
    """A folder that runs, and what must be closed after it."""

    config: FolderConfig
    engine: FolderEngine
    database: Database
    fs: DiskFileSystem
    index: Path

    def close(self) -> None:
        """Close index and root; the services have ended."""
        self.engine.base_texts.close()
        if not self.engine.awaits_own_log:
            with contextlib.suppress(OSError, sqlite3.Error):  # asked again at the next start
                note_place(self.database, self.index)
        self.database.close()
        self.fs.close()


def check_directory(directory: Path, home: Home) -> FolderConfig | None:
    """What this home knows of `directory`, None if it can become a new folder's.

    Raises:
        DirectoryError: it is a file, not writable, within another folder, or another one's root.
    """
    safe = "Nothing was changed."
    if directory.exists() and not directory.is_dir():
        raise DirectoryError(f"{directory} is a file, not a directory. {safe} Name a directory.")
    for known in home.folders():
        if Path(known.path) == directory:
            if not directory.is_dir():
                raise DirectoryError(
                    f"{directory} is not there any more: was its disk unplugged, or the folder "
                    f"moved? Nothing was deleted, here or on other devices. Bring it back."
                )
            return known
    for parent in directory.parents:
        if (parent / ROOT_MARKER).exists():
            raise DirectoryError(
                f"{directory} lies inside {parent}, which is a synced folder already. {safe} "
                "Choose a directory outside of it."
            )
    if (directory / ROOT_MARKER).exists():
        raise DirectoryError(
            f"{directory} is the root of a folder that another home keeps in sync. {safe} "
            "Use that home (--home), or choose another directory."
        )
    for inner, names, _ in os.walk(directory):
        if ".shoal" in names and (Path(inner) / ROOT_MARKER).exists():
            raise DirectoryError(
                f"{directory} holds {inner}, which is a synced folder already. {safe} Choose a "
                "directory beside it."
            )
    existing = directory
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise DirectoryError(f"{directory} cannot be written to. {safe} Check its permissions.")
    return None


def prepare_directory(directory: Path, random: Random) -> RootId:
    """Create the directory and mark it as a folder's root; durable when it returns."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        fs = DiskFileSystem(directory)
    except OSError as error:
        raise DirectoryError(
            f"{directory} cannot be used: {error.strerror}. Nothing was changed."
        ) from error
    marker = RootId(random.bytes(16))
    try:
        create_root_marker(fs, marker)
    except OSError as error:
        raise DirectoryError(
            f"{directory} cannot be written to: {error.strerror}. Nothing was changed."
        ) from error
    finally:
        fs.close()
    return marker


def create_folder(
    home: Home, directory: Path, identity: Identity, name: str, clock: Clock, random: Random
) -> FolderConfig:
    """Begin a new folder at `directory`, owned by this device."""
    folder, ops = genesis_ops(
        identity.device,
        name,
        nonce=random.bytes(32),
        epoch_secret=random.bytes(32),
        seed=random.bytes(32),
    )
    database = open_database(home.index_path(folder))
    try:
        made = Folder(
            folder=folder, database=database, identity=identity, clock=clock, random=random
        )
        made.commit_roster(ops)
        home.save_roster(folder, made.roster_entries)
    finally:
        database.close()
    # The configuration comes last: until it is there, the folder does not exist.
    config = FolderConfig(folder, str(directory), bytes(prepare_directory(directory, random)))
    home.save(config)
    return config


def open_folder(
    config: FolderConfig,
    home: Home,
    identity: Identity,
    clock: Clock,
    random: Random,
    threads: Threads,
) -> OpenFolder:
    """Open a folder's index and wire its engine."""
    ports = Ports(identity, clock, random, threads)
    path = home.index_path(config.folder)
    try:
        return _open(config, home, ports, path)
    except DamagedIndexError as error:
        aside = move_aside(path, str(ports.clock.wall_ns() // 10**9))
        opened = _open(config, home, ports, path, rebuilt=True)
        opened.engine.warn(
            "",
            f"{error}. It was moved aside to {aside.name} and is rebuilt from the disk and from "
            "other devices; nothing was deleted.",
        )
        return opened


def _open(
    config: FolderConfig, home: Home, ports: Ports, path: Path, *, rebuilt: bool = False
) -> OpenFolder:
    """As `open_folder`; raises DamagedIndexError, with everything closed again."""
    with contextlib.ExitStack() as stack:
        database = open_database(path)
        stack.callback(database.close)
        fs = DiskFileSystem(config.path)
        stack.callback(fs.close)
        engine = wire_folder(
            config,
            ports,
            database=database,
            fs=fs,
            watcher=DiskWatcher(config.path),
            roster=home.roster(config.folder),
            old_entries=_old_entries(path),
            rebuilt=rebuilt,
            cache=home.directory(config.folder) / "texts.sqlite",
        )
        if is_copy(database, path) and len(engine.folder.roster.members) > 1:
            engine.warn("", COPIED)
            engine.await_own_log()
        else:
            note_place(database, path)
        engine.history.policy = load_policy(home.directory(config.folder))
        stack.pop_all()  # the caller closes them
    return OpenFolder(config, engine, database, fs, path)


def wire_folder(
    config: FolderConfig,
    ports: Ports,
    *,
    database: Database,
    fs: FileSystem,
    watcher: Watcher,
    roster: Sequence[bytes],
    old_entries: Iterable[bytes] = (),
    rebuilt: bool = False,
    cache: Path | None = None,
) -> FolderEngine:
    """Put a folder's state and services together, whatever its index and its disk are.

    `roster` are entries known from joining, before the log holds them; `old_entries` what can be
    read of logs that were lost, looked at only where needed. An index is `rebuilt` when it is a new
    one in the place of a damaged one. `cache` is where texts are kept for merging; None for memory.
    """
    with contextlib.suppress(OSError):  # the engine tries again, and says what is wrong
        make_layout(fs)
    folder = Folder(
        folder=config.folder,
        database=database,
        identity=ports.identity,
        clock=ports.clock,
        random=ports.random,
        invitation_seed=config.invitation_seed,
        bootstrap=roster,
        personality=probed(fs, database),
    )
    if rebuilt or not folder.log.position(ports.identity.device).seq:
        salvage(folder, (*old_entries, *roster))
    engine = FolderEngine(
        folder=folder,
        path=config.path,
        marker=RootId(config.marker),
        fs=fs,
        threads=ports.threads,
        watcher=watcher,
        paused=config.paused,
        cache=cache,
    )
    if rebuilt and len(folder.roster.members) > 1:
        engine.await_own_log()
    return engine


async def start_folder(
    engine: FolderEngine,
    engines: dict[FolderId, FolderEngine],
    connections: Connections,
    nursery: trio.Nursery,
    *,
    save_roster: Callable[[Sequence[bytes]], None],
) -> None:
    """Run a folder's services in `nursery`, and offer it to the node's peers once they run.

    `engines` are the folders of `connections`, to which this one is added; `save_roster` stores the
    roster entries durably outside the index.
    """

    def roster_changed() -> None:
        save_roster(engine.folder.roster_entries)
        connections.roster_changed()
        if not engine.awaits_own_log and tend_keys(engine.folder, connections.addresses):
            roster_changed()

    engine.on_roster = roster_changed
    await nursery.start(engine.serve)
    engines[engine.folder.id] = engine


def probed(fs: FileSystem, database: Database) -> Personality:
    """How the disk treats names; what it was last time where it cannot be asked now."""
    try:
        personality = probe(fs, TMP)
    except OSError as error:
        logger.warning("the disk does not say how it treats names: %s", error)
        found = database.connection.execute("SELECT value FROM meta WHERE key = 'names'").fetchone()
        return Personality() if found is None else Personality(*map(bool, found[0]))
    value = bytes(
        (
            personality.folds_case,
            personality.folds_unicode,
            personality.stores_decomposed,
            personality.windows_names,
        )
    )
    with database.transaction():
        database.connection.execute("INSERT OR REPLACE INTO meta VALUES ('names', ?)", (value,))
    return personality


def never_merge(opened: OpenFolder) -> None:
    """Write into the folder that nothing in it is to be merged, on any device."""
    try:
        with contextlib.suppress(FileExistsError), opened.fs.create(NO_MERGE_FILE) as handle:
            handle.write_at(0, b"*\n")
        with opened.fs.open_read(NO_MERGE_FILE) as reading:
            if b"*" in reading.read_at(0, TEXT_BYTES_MAX).splitlines():
                return
        why = "it holds other lines"
    except OSError as error:
        why = error.strerror or str(error)
    opened.engine.warn(NO_MERGE_FILE, f"--no-merge had no effect ({why}): write a line `*` into it")


def salvage(folder: Folder, entries: Iterable[bytes]) -> None:
    """Take over entries that may be known or damaged: old logs, and the stored roster."""
    intake = Intake(folder)
    batch: list[bytes] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) >= SALVAGE_BATCH:
            _take(intake, batch)
            batch = []
    _take(intake, batch)


def _take(intake: Intake, batch: list[bytes]) -> None:
    for entry in batch:
        try:
            intake.receive([entry])
        except PeerError as error:
            logger.warning("an old entry was left out: %s", error)


def _old_entries(path: Path) -> Iterator[bytes]:
    damaged = sorted(path.parent.glob(f"{path.name}.damaged-*"))
    for old in damaged:
        if old.name.endswith(("-wal", "-shm")):
            continue
        try:
            connection = sqlite3.connect(f"file:{old}?mode=ro", uri=True)
            for (entry,) in connection.execute("SELECT entry FROM log ORDER BY arrival"):
                if isinstance(entry, bytes):
                    yield entry
        except sqlite3.Error as error:
            logger.warning("the rest of the damaged log cannot be read: %s", error)


def is_present(config: FolderConfig) -> bool:
    """True when the folder's directory is there; one on an unplugged disk waits for it."""
    return Path(config.path).is_dir()
