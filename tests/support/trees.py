"""Snapshots of directories, and waiting for several to become equal."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05  # other processes' disks can only be looked at


@dataclass(frozen=True)
class Node:
    """What a tree holds at one path."""

    kind: str
    content: str = ""
    executable: bool = False
    mtime_ns: int = 0


def snapshot(root: Path) -> dict[str, Node]:
    """Path → node for everything but `.shoal`; raises OSError if it changes meanwhile."""
    found: dict[str, Node] = {}
    for directory, names, files in os.walk(root):
        if Path(directory) == root:
            names[:] = [name for name in names if name != ".shoal"]
        for name in [*names, *files]:
            path = Path(directory) / name
            found[str(path.relative_to(root))] = _node(path)
        names[:] = [name for name in names if not (Path(directory) / name).is_symlink()]
    return found


def _node(path: Path) -> Node:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return Node("symlink", str(path.readlink()))
    if stat.S_ISDIR(status.st_mode):
        return Node("directory")
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "blake2b").hexdigest()[:16]
    return Node("file", digest, bool(status.st_mode & 0o100), status.st_mtime_ns)


def differences(one: dict[str, Node], other: dict[str, Node]) -> list[str]:
    """Readable lines, one a path that differs."""
    return [
        f"{path}: {one.get(path)} | {other.get(path)}"
        for path in sorted({*one, *other})
        if one.get(path) != other.get(path)
    ]


def wait_until_equal(*roots: Path, timeout_s: float = 60.0) -> dict[str, Node]:
    """Poll until all trees are equal, twice in a row; returns the tree."""
    deadline = time.monotonic() + timeout_s
    last: list[str] = ["never looked"]
    equal_before: dict[str, Node] | None = None
    while time.monotonic() < deadline:
        try:
            shots = [snapshot(root) for root in roots]
        except OSError as error:
            last = [str(error)]
            equal_before = None
        else:
            last = [line for shot in shots[1:] for line in differences(shots[0], shot)]
            if not last:
                if equal_before == shots[0]:
                    return shots[0]
                equal_before = shots[0]
            else:
                equal_before = None
        pause(POLL_S)
    raise AssertionError(f"{len(last)} differences after {timeout_s} s:\n" + "\n".join(last[:30]))


def pause(seconds: float) -> None:
    """Wait between two looks at something that gives no event."""
    threading.Event().wait(seconds)
