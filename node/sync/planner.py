"""Plans what one item needs so that the disk shows what the view says. Pure.

Three words meet here: *wanted* (the view row), *agreed* (the disk row: what we last saw or put
there) and *observed* (what lstat says now). The plan comes from wanted and agreed; observed is
compared with agreed right before anything is touched (`still_as_agreed`), and where it differs
nothing is touched: the path is scanned first, and what a person did becomes a write of its own. So
a plan made from stale words does no harm, and plans are never stored.

Invariants: a plan for an item that is in place is empty; carrying a plan out makes the next one
empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from crdt.slot import Content, Kind
from crdt.tree import ViewRow
from node.files.port import Stat
from node.index.disk_rows import DiskRow

RACY_NS: Final = 10_000_000  # one tick of the coarsest kernel clock (100 Hz): git's "racy clean"
COARSE_RACY_NS: Final = 2_000_000_000  # FAT keeps mtimes to 2 s
GOING: Final = -1  # revision of a row whose local copy is being removed by us
UNSURE: Final = -1  # a ctime that never matches: the next scan looks at the content


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for one item; at most one of `create`, `remove` and `release`."""

    create: bool = False
    remove: bool = False
    release: bool = False  # the tree keeps it, this disk does not
    relocate: bool = False
    content: bool = False  # other bytes
    metadata: bool = False  # the same bytes with another mtime or executable bit
    note: bool = False  # only the disk row's revision or version lags

    @property
    def touches_disk(self) -> bool:
        """True when a disk operation is needed."""
        return (
            self.create
            or self.remove
            or self.release
            or self.relocate
            or self.content
            or self.metadata
        )


NOTHING: Final = Plan()


def plan_item(
    wanted: ViewRow | None,
    agreed: DiskRow | None,
    name: str | None = None,
    *,
    hidden: bool = False,
) -> Plan:
    """Compare the two words about one item.

    Args:
        wanted: The view's row, None when the item is not to be seen.
        agreed: The disk row, None when we never put or found the item on the disk.
        name: The name this disk gives it, where it cannot hold `wanted.name`.
        hidden: It lies in a directory that does not live on this device.

    """
    if wanted is None:
        return Plan(remove=True) if agreed is not None else NOTHING
    if hidden:
        return Plan(release=True) if agreed is not None else NOTHING
    if agreed is None:
        return Plan(create=True)
    content = wanted.content
    bytes_differ = content.digest != agreed.digest
    metadata_differs = content.kind is Kind.FILE and (
        content.mtime_ns != agreed.mtime_ns or content.executable != agreed.executable
    )
    version_differs = content.version != agreed.version
    return Plan(
        relocate=(wanted.parent, name or wanted.name) != (agreed.parent, agreed.name),
        content=bytes_differ,
        metadata=version_differs and metadata_differs and not bytes_differ,
        # Whether a copy that was going is still there, only a scan can tell.
        note=agreed.revision != GOING and (version_differs or wanted.revision != agreed.revision),
    )


def still_as_agreed(observed: Stat, agreed: DiskRow) -> bool:
    """True when what lies on the disk is what the disk row says, as far as lstat can tell."""
    if observed.kind.value != agreed.kind.value or observed.inode != agreed.inode:
        return False
    if agreed.kind is Kind.DIRECTORY:
        return True
    return (  # symlinks too: a new one may well get the inode of the old one
        observed.size == agreed.size
        and observed.mtime_ns == agreed.mtime_ns
        and observed.executable == agreed.executable
        and observed.ctime_ns == agreed.ctime_ns
    )


def same_file_moved(observed: Stat, agreed: DiskRow) -> bool:
    """Like `still_as_agreed`, for a file that was just renamed: that changes its ctime."""
    return (
        observed.kind.value == agreed.kind.value
        and observed.inode == agreed.inode
        and (
            agreed.kind is Kind.DIRECTORY
            or (observed.size == agreed.size and observed.mtime_ns == agreed.mtime_ns)
        )
    )


def sure_ctime_ns(stat: Stat, now_wall_ns: int) -> int:
    """The ctime to remember: UNSURE while a further write could still get the same stamps.

    Source: "racy git", the racy-clean rule of git's index; DESIGN section 8.
    """
    coarse = stat.mtime_ns % 1_000_000_000 == 0 and stat.ctime_ns % 1_000_000_000 == 0
    window = COARSE_RACY_NS if coarse else RACY_NS
    newest = max(stat.ctime_ns, stat.mtime_ns if coarse else 0)
    return stat.ctime_ns if abs(now_wall_ns - newest) > window else UNSURE


def adopts(content: Content, digest: bytes, executable: bool) -> bool:
    """True when what a scan found at an item's place is what the view wants there already."""
    return content.digest == digest and (
        content.kind is not Kind.FILE or content.executable == executable
    )
