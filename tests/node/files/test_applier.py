"""What the applier leaves behind when the disk refuses half-way."""

from __future__ import annotations

import errno

import pytest

from crdt.ids import ROOT, ItemId
from crdt.slot import Kind
from crdt.version_vector import EMPTY
from node.files.applier import Place, Verdict, execute
from node.files.faulty import Fault, FaultPlan, FaultyFileSystem, Operation
from node.files.memory import MemoryFileSystem
from node.files.port import ExchangeUnsupportedError
from node.files.root_marker import make_layout
from node.index.disk_rows import DiskRow


def place_over(fs: MemoryFileSystem) -> Place:
    fs.write_file("f", b"old")
    stat = fs.lstat("f")
    row = DiskRow(
        ItemId(b"i" * 16), ROOT, "f", Kind.FILE, EMPTY, bytes(32), 0, "f", stat.inode, stat.size,
        stat.mtime_ns, stat.ctime_ns, stat.executable, 0,
    )  # fmt: skip
    return Place(
        target="f", temporary=".shoal/tmp/x.new", swap=".shoal/tmp/x.swap", source=b"new",
        mtime_ns=0, executable=False, expected=row, history=".shoal/history/1",
    )  # fmt: skip


class WithoutExchange(MemoryFileSystem):
    def exchange(self, first: str, second: str) -> None:
        raise ExchangeUnsupportedError(first)


@pytest.mark.parametrize(
    ("kind", "refused"),
    [(MemoryFileSystem, ".shoal/history/1"), (WithoutExchange, "f")],
)
def test_what_history_has_no_room_for_stays_where_it_was(
    kind: type[MemoryFileSystem], refused: str
) -> None:
    fs = kind()
    make_layout(fs)
    job = place_over(fs)
    plan = FaultPlan([Fault(errno.ENOSPC, Operation.RENAME, refused)])
    (outcome,) = execute(FaultyFileSystem(fs, plan), [job])
    assert outcome.verdict is Verdict.FAILED
    assert fs.snapshot()["f"] == b"old"
    (outcome,) = execute(fs, [place_over(fs)])  # the disk has room again
    assert outcome.verdict is Verdict.DONE
    found = fs.snapshot()
    assert (found["f"], found[".shoal/history/1"]) == (b"new", b"old")
