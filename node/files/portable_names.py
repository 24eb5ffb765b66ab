"""Which names a disk can hold, and what stands in for the others. Pure, apart from `probe`.

The tree holds exact names; disks differ. One folds case (`Makefile` and `makefile` are one file),
one folds Unicode normal forms, Windows refuses `aux` and `a:b`. Where a name cannot be held, or its
place is taken by one that this disk thinks equal, the item lies under an *alias*: a name of its own
that means nothing outside this disk. The index keeps which item an alias stands for; the alias is
never parsed and never written back to the tree (DESIGN section 4).
"""

from __future__ import annotations

import errno
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import blake3

from node.files.layout import is_ours
from node.files.port import NAME_BYTES_MAX, FileSystem, join

ALIASES_MAX: Final = 1_000  # tries; names that collide so often are somebody's attack
EXTENSION_BYTES_MAX: Final = 32  # anything longer is no extension that a program would look for

_WINDOWS_FORBIDDEN: Final = frozenset('<>:"/\\|?*') | {chr(code) for code in range(32)}
_WINDOWS_DEVICES: Final = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [f"{device}{digit}" for device in ("COM", "LPT") for digit in "0123456789¹²³"]
)
_PROBE_COMPOSED: Final = "probe-\u00e9"  # é as one code point, and as e with an accent
_PROBE_DECOMPOSED: Final = "probe-e\u0301"


@dataclass(frozen=True, slots=True)
class Personality:
    """How a disk treats names."""

    folds_case: bool = False
    folds_unicode: bool = False  # composed and decomposed forms are one name
    stores_decomposed: bool = False  # and come back decomposed, however they were given (HFS+)
    windows_names: bool = False

    def key(self, name: str) -> str:
        """Names with equal keys cannot lie side by side.

        Real disks fold with tables of their own; this folds at least as much as any of them, which
        costs an alias that was not needed now and then (`ß` and `ss`), never a lost file.
        """
        if self.folds_unicode:
            name = unicodedata.normalize("NFD", name)
        if self.folds_case:
            name = name.casefold()
        if self.folds_unicode:
            name = unicodedata.normalize("NFD", name)
        return name

    def stored(self, name: str) -> str:
        """How a listing will spell a file that was created as `name`."""
        return unicodedata.normalize("NFD", name) if self.stores_decomposed else name


def local_name(name: str, taken: Callable[[str], bool], personality: Personality) -> str:
    """What an item of the tree is called on this disk: its own name if at all possible.

    Args:
        name: Exact name in the tree.
        taken: Whether another item has a name in that directory, as far as this disk can tell names
            apart (compare `Personality.key`).
        personality: The disk's.

    Raises:
        ValueError: not even an alias was free.
    """
    if storable(name, personality) and not taken(name):
        return personality.stored(name)
    return alias(name, taken, personality)


def storable(name: str, personality: Personality) -> bool:
    """Like `possible`, for people's files: names that are ours are none of theirs.

    A listing may spell it otherwise: see `Personality.stored`.
    """
    return possible(name, personality) and not is_ours(name)


def possible(name: str, personality: Personality) -> bool:
    """True when the disk can hold any file of that name, were it alone in its directory."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        return False
    try:
        size = len(personality.stored(name).encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return False
    if size > NAME_BYTES_MAX:
        return False
    if not personality.windows_names:
        return True
    if name[-1] in ". " or not _WINDOWS_FORBIDDEN.isdisjoint(name):
        return False
    device = name.partition(".")[0].rstrip(" ").upper()
    return device not in _WINDOWS_DEVICES


def alias(name: str, taken: Callable[[str], bool], personality: Personality) -> str:
    """A storable name to stand in for `name`: `aux.txt` becomes `aux~3f1c.txt`.

    The same name gets the same alias as long as nothing is in its way, so that a rebuilt index
    finds what an older one left. Arguments and errors: see `local_name`.
    """
    stem, _, extension = name.rpartition(".")
    if not stem or len(extension.encode("utf-8", "replace")) > EXTENSION_BYTES_MAX:
        stem, extension = name, ""
    stem, extension = _clean(stem), _clean(extension).rstrip(". ")
    dot = "." if extension else ""
    if personality.windows_names:  # `nul.tar.gz` is a device as much as `nul` is
        stem = stem.replace(".", "_")
    raw = name.encode("utf-8", "surrogatepass")
    for attempt in range(ALIASES_MAX):
        digest = blake3.blake3(raw + b"\0%d" % attempt).hexdigest()
        tail = f"~{digest[: 4 if attempt < 16 else 16]}{dot}{extension}"
        candidate = _cut(stem, tail, personality)
        if storable(candidate, personality) and not taken(candidate):
            return candidate
    raise ValueError(f"no name on this disk can stand in for {name!r}")


def probe(
    fs: FileSystem, directory: str, *, windows: bool = sys.platform == "win32"
) -> Personality:
    """Find out how the disk below `directory` treats names, by creating and removing files there.

    Args:
        fs: The folder.
        directory: An existing directory of our own (`.shoal/tmp`); nobody else writes there.
        windows: Whether the system itself refuses Windows' reserved names.

    Raises:
        OSError: the disk refused; nothing is known then.
    """
    folds_case = _same(fs, directory, "probe-case", "PROBE-CASE")
    try:
        folds_unicode = _same(fs, directory, _PROBE_COMPOSED, _PROBE_DECOMPOSED)
        stores_decomposed = _spelling(fs, directory) == _PROBE_DECOMPOSED
    except OSError as error:
        if error.errno not in (errno.EILSEQ, errno.EINVAL):
            raise
        folds_unicode = stores_decomposed = False  # a disk that holds no such letter folds none
    windows_names = windows or not _holds(fs, directory, "probe:colon")  # FAT, NTFS under Linux
    return Personality(folds_case, folds_unicode, stores_decomposed, windows_names)


def _same(fs: FileSystem, directory: str, name: str, other: str) -> bool:
    """Whether the disk takes `other` for `name`."""
    for leftover in (name, other):
        _remove(fs, join(directory, leftover))
    fs.create(join(directory, name)).close()
    try:
        fs.lstat(join(directory, other))
    except FileNotFoundError:
        return False
    finally:
        _remove(fs, join(directory, name))
    return True


def _spelling(fs: FileSystem, directory: str) -> str | None:
    """What a listing calls the file that was created under the composed name."""
    fs.create(join(directory, _PROBE_COMPOSED)).close()
    try:
        names = {entry.name for entry in fs.scandir(directory)}
    finally:
        _remove(fs, join(directory, _PROBE_COMPOSED))
    return next((name for name in (_PROBE_COMPOSED, _PROBE_DECOMPOSED) if name in names), None)


def _holds(fs: FileSystem, directory: str, name: str) -> bool:
    path = join(directory, name)
    _remove(fs, path)
    try:
        fs.create(path).close()
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.EILSEQ):
            return False
        raise
    _remove(fs, path)
    return True


def _remove(fs: FileSystem, path: str) -> None:
    try:
        fs.unlink(path)
    except OSError as error:
        # Windows and FAT say EINVAL for a name that could not exist in the first place.
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.EILSEQ):
            raise


def _clean(text: str) -> str:
    """`text` without what some disk refuses."""
    return "".join(
        "_" if character in _WINDOWS_FORBIDDEN or "\ud800" <= character <= "\udfff" else character
        for character in unicodedata.normalize("NFC", text)
    )


def _cut(stem: str, tail: str, personality: Personality) -> str:
    """As much of `stem` as fits before `tail`, spelled as the disk will."""
    stem = stem[:NAME_BYTES_MAX] or "_"
    while len(personality.stored(stem + tail).encode()) > NAME_BYTES_MAX:
        stem = stem[:-1]
    return personality.stored(stem + tail)
