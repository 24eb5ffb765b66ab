"""Snapshots of directories, and waiting for several to become equal."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05  # other processes' disks can only be looked at
SETTLED_NS = 2 * 10**9  # a file whose ctime is older has no write that its ctime does not show

_digests: dict[tuple[int, int, int, int, int], str] = {}


@dataclass(frozen=True)
class Node:
    """What a tree holds at one path."""

    kind: str
    content: str = ""
    executable: bool = False
    mtime_ns: int = 0


Tree = dict[str, Node]


def snapshot(root: Path) -> Tree:
    """Path → node for everything but `.shoal`; raises OSError if it changes meanwhile."""
    found: Tree = {}
    for directory, names, files in os.walk(root, onerror=_raise):
        if Path(directory) == root:
            names[:] = [name for name in names if name != ".shoal"]
        for name in [*names, *files]:
            path = Path(directory) / name
            found[str(path.relative_to(root))] = _node(path)
        names[:] = [name for name in names if not (Path(directory) / name).is_symlink()]
    return found


def _raise(error: OSError) -> None:
    raise error


def _node(path: Path) -> Node:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return Node("symlink", str(path.readlink()))
    if stat.S_ISDIR(status.st_mode):
        return Node("directory")
    executable = bool(status.st_mode & 0o100)
    return Node("file", _digest(path, status), executable, status.st_mtime_ns)


def _digest(path: Path, status: os.stat_result) -> str:
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    known = _digests.get(key)
    if known is not None:
        return known
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "blake2b").hexdigest()[:16]
    if time.time_ns() - status.st_ctime_ns > SETTLED_NS:
        _digests[key] = digest
    return digest


def contents(root: Path) -> set[bytes]:
    """What all files beneath `root` hold, wherever they lie."""
    found = set()
    for directory, names, files in os.walk(root, onerror=_raise):
        if Path(directory) == root:
            names[:] = [name for name in names if name != ".shoal"]
        found |= {
            path.read_bytes() for name in files if not (path := Path(directory) / name).is_symlink()
        }
    return found


def differences(one: Tree, other: Tree) -> list[str]:
    """Readable lines, one a path that differs."""
    return [
        f"{path}: {one.get(path)} | {other.get(path)}"
        for path in sorted({*one, *other})
        if one.get(path) != other.get(path)
    ]


def wait_until_equal(
    *roots: Path, timeout_s: float = 60.0, expected: Tree | Callable[[Tree], object] | None = None
) -> Tree:
    """Poll until all trees are equal, twice in a row; returns the tree.

    With `expected`, also until the tree is that one, or one that it finds as it should be: two
    trees may be equal before anything has begun.
    """
    deadline = time.monotonic() + timeout_s
    last: list[str] = ["never looked"]
    equal_before: Tree | None = None
    while time.monotonic() < deadline:
        try:
            shots = [snapshot(root) for root in roots]
            unmet = _unmet(expected, shots[0])
        except OSError as error:
            last = [str(error)]
            equal_before = None
        else:
            last = [line for shot in shots[1:] for line in differences(shots[0], shot)]
            last = last or unmet
            if not last and equal_before == shots[0]:
                return shots[0]
            equal_before = None if last else shots[0]
        pause(POLL_S)
    raise AssertionError(f"{len(last)} differences after {timeout_s} s:\n" + "\n".join(last[:30]))


def _unmet(expected: Tree | Callable[[Tree], object] | None, tree: Tree) -> list[str]:
    if expected is None:
        return []
    if isinstance(expected, dict):
        return [f"equal, but not as meant: {line}" for line in differences(tree, expected)]
    return [] if expected(tree) else [f"equal, but not as expected: {path}" for path in tree]


def wait_for(what: Callable[[], object], *, timeout_s: float = 30.0, say: str = "") -> None:
    """Poll until `what` is true."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {say or what}"
        pause(POLL_S)


def pause(seconds: float) -> None:
    """Wait between two looks at something that gives no event."""
    threading.Event().wait(seconds)
