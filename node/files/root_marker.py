"""Is this still the folder?

A random id lies in `.shoal/root` and in the index (DESIGN section 13). Before a scan may call
anything deleted, both must agree: a disk that is not mounted, a folder that was moved or swapped,
or one that lost everything at once must stop the node, not empty every other device.

The file is text, so that a person who finds it can tell what it is. Reading decides nothing;
`judge_root` is pure.
"""

from __future__ import annotations

import contextlib
import enum
import errno
from dataclasses import dataclass
from typing import Final

import blake3

from crdt.errors import IntegrityError
from node.files.layout import DIRECTORIES, OURS, ROOT_MARKER, TMP, is_ours
from node.files.port import FileSystem, NotRegularFileError

ROOT_ID_SIZE: Final = 16  # bytes
CHECKSUM_SIZE: Final = 8  # bytes: against rot, not against people
_HEADER: Final = "shoal root 1"
_NEW_MARKER: Final = f"{TMP}/root.new"


class RootId(bytes):
    """Names one folder on one disk; random."""

    __slots__ = ()

    def __new__(cls, value: bytes) -> RootId:
        """Raises ValueError when `value` is not 16 bytes."""
        if len(value) != ROOT_ID_SIZE:
            raise ValueError(f"a root id has {ROOT_ID_SIZE} bytes, got {len(value)}")
        return super().__new__(cls, value)


class DamagedRootMarkerError(IntegrityError):
    """`.shoal/root` is there, but is not what we wrote."""


class RootState(enum.Enum):
    """What became of the folder since the node last knew it."""

    OK = "ok"
    MISSING = "missing"  # no folder, or one without our mark
    DIFFERENT = "different"  # another folder's mark
    DAMAGED = "damaged"  # an unreadable mark
    EMPTIED = "emptied"  # our mark, and of all the files not one


@dataclass(frozen=True, slots=True)
class RootCheck:
    """The verdict, and what to tell people unless it is OK."""

    state: RootState
    message: str = ""


def read_root_marker(fs: FileSystem) -> RootId | None:
    """The folder's id, None if it has none.

    Raises:
        DamagedRootMarkerError: something else is in the file.
        OSError: the disk did not let us look; nothing is known.
    """
    try:
        with fs.open_read(ROOT_MARKER) as file:
            data = file.read_at(0, 4096)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except NotRegularFileError:
        raise DamagedRootMarkerError(f"{ROOT_MARKER} is no file") from None
    lines = data.decode("ascii", "replace").split("\n")
    with contextlib.suppress(ValueError, IndexError):
        root = RootId(bytes.fromhex(lines[1]))
        if data == _marker_text(root):
            return root
    raise DamagedRootMarkerError(f"{ROOT_MARKER} is damaged")


def make_layout(fs: FileSystem) -> None:
    """Create what is missing of `.shoal` and its directories, for this user's eyes only; durable.

    Raises:
        NotADirectoryError: something else lies in the way.
    """
    made = False
    for path in DIRECTORIES:
        try:
            fs.mkdir(path, private=True)
            made = True
        except FileExistsError:
            fs.scandir(path)  # raises NotADirectoryError for a file or symlink
    if made:
        fs.fsync_directory(OURS)
        fs.fsync_directory("")


def create_root_marker(fs: FileSystem, root: RootId) -> None:
    """Mark the folder; durable when it returns.

    Raises:
        FileExistsError: it has a mark already, maybe a damaged one. It is never overwritten.
    """
    make_layout(fs)
    with contextlib.suppress(FileNotFoundError):
        fs.unlink(_NEW_MARKER)  # of an attempt that a crash ended
    with fs.create(_NEW_MARKER) as file:
        file.write_at(0, _marker_text(root))
        file.fsync()
    fs.rename(_NEW_MARKER, ROOT_MARKER)
    fs.fsync_directory(OURS)


def check_root(fs: FileSystem, expected: RootId, *, had_files: bool) -> RootCheck:
    """Look at the folder and judge. Call it before each full scan, and before believing that a
    whole listing of the root is gone.

    Args:
        fs: The folder, opened.
        expected: The id in the index.
        had_files: Whether the index knows any item in it.

    Raises:
        OSError: the disk did not let us look. Retry; conclude nothing.
    """
    if not fs.is_attached():
        return judge_root(None, expected, had_files=had_files, has_files=False)
    try:
        found: RootId | DamagedRootMarkerError | None = read_root_marker(fs)
    except DamagedRootMarkerError as error:
        found = error
    try:
        has_files = any(not is_ours(entry.name) for entry in fs.scandir(""))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        found, has_files = None, False  # removed between the two looks
    return judge_root(found, expected, had_files=had_files, has_files=has_files)


def judge_root(
    found: RootId | DamagedRootMarkerError | None,
    expected: RootId,
    *,
    had_files: bool,
    has_files: bool,
) -> RootCheck:
    """The decision behind `check_root`; pure."""
    safe = "Nothing was deleted, here or on other devices."
    if found is None:
        return RootCheck(
            RootState.MISSING,
            f"The folder is not where it was, or lost its {ROOT_MARKER}: was its disk unplugged, "
            f"or the folder moved? {safe} Bring it back and resume, or set the folder up anew.",
        )
    if isinstance(found, DamagedRootMarkerError):
        return RootCheck(
            RootState.DAMAGED,
            f"{ROOT_MARKER} is damaged, so it is not certain that this is the folder. {safe} "
            "Check the disk; if the files are yours, remove that file and set the folder up anew.",
        )
    if found != expected:
        return RootCheck(
            RootState.DIFFERENT,
            "Another folder lies where this one was: maybe a backup was restored, or another disk "
            f"is mounted there. {safe} Put the right one back, or set this one up as a new folder.",
        )
    if had_files and not has_files:
        return RootCheck(
            RootState.EMPTIED,
            f"Every file of this folder is gone at once. {safe} If you meant to delete them all, "
            "approve it; otherwise bring them back, or let them be fetched from other devices.",
        )
    return RootCheck(RootState.OK)


def _marker_text(root: RootId) -> bytes:
    checksum = blake3.blake3(_HEADER.encode() + root).hexdigest(CHECKSUM_SIZE)
    return f"{_HEADER}\n{root.hex()}\n{checksum}\n".encode()
