"""Faults to plant: each breaks one rule of the program, by other source text in one module.

A text that is not found exactly once stops the run: whoever changes the program changes the fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Change:
    """Other text in a module."""

    module: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Fault:
    """One planted fault; `rule` is what it breaks, `seeds` how many worlds it may take."""

    name: str
    rule: str
    changes: tuple[Change, ...]
    seeds: int = 300


APPLIER: Final = "node.files.applier"
COMMIT: Final = "node.sync.commit"
SCAN: Final = "node.sync.scan"

FAULTS: Final = (
    Fault(
        "no fsync of new content",
        "content is on the disk before it gets its name",
        (
            Change(APPLIER, "if fsync or job.source is None:", "if False:"),
            Change(APPLIER, "    if together:\n        fs.sync()\n", ""),
        ),
    ),
    Fault(
        "no fsync of names",
        "names are on the disk before the index says so",
        (Change(APPLIER, "    _sync_names(fs, jobs, outcomes)\n    return", "    return"),),
    ),
    Fault(
        "published before it is synced",
        "what a scan found is synced before it is published",
        (Change(SCAN, "        await self._sync([*batch, *map(Deleted, gone)])\n", ""),),
    ),
    Fault(
        "a read error is a deletion",
        "only what is known to be gone is deleted",
        (
            Change(
                SCAN,
                "            if listing.error is not None:\n"
                "                self._warn_listing(listing)\n"
                "                continue\n",
                "            if listing.error is not None:\n"
                "                listing = replace(listing, error=None)\n",
            ),
            Change(
                SCAN,
                "            return is_gone(error)\n",
                "            return True\n",
            ),
            Change(
                SCAN,
                "        if stat.inode == row.inode and int(stat.kind) == int(row.kind):\n"
                "            return False\n",
                "        return True\n",
            ),
        ),
    ),
    Fault(
        "a file that cannot be read is a deletion",
        "one unreadable file is a warning on that file",
        (
            Change(
                SCAN,
                "self.report.warnings[candidate.path] = result.reason",
                "self._batch += [Deleted(candidate.row)] if candidate.row else []",
            ),
        ),
    ),
    Fault(
        "deletions are not looked at twice",
        "what is missing here may turn up there",
        (
            Change(
                SCAN,
                "if await self._is_gone(row, replaced=(row.parent, row.name) in taken):\n",
                "if row:\n",
            ),
        ),
    ),
    Fault(
        "the exchange's mismatch is ignored",
        "what comes out of an exchange is looked at",
        (
            Change(
                APPLIER,
                "    if not same_file_moved(fs.lstat(job.swap), job.expected):\n",
                "    if False:\n",
            ),
            Change(
                APPLIER,
                "    if not still_as_agreed(fs.lstat(job.target), job.expected):\n"
                "        return Outcome(Verdict.CHANGED)\n"
                "    fs.rename(job.temporary, job.swap)\n",
                "    fs.rename(job.temporary, job.swap)\n",
            ),
        ),
    ),
    Fault(
        "an edit that was not scanned is overwritten",
        "what a person did since the last look is not touched",
        (
            Change(
                "node.sync.planner",
                "    if agreed.kind is Kind.DIRECTORY:\n        return True\n    return (  #",
                "    return True\n    return (  #",
            ),
        ),
    ),
    Fault(
        "an edit that was not scanned is deleted",
        "what a person did since the last look is not touched",
        (
            Change(
                APPLIER,
                "    if not still_as_agreed(stat, job.expected):\n"
                "        return Outcome(Verdict.CHANGED)\n"
                "    fs.rename(job.target, job.history)\n"
                "    if not same_file_moved(fs.lstat(job.history), job.expected):\n",
                "    fs.rename(job.target, job.history)\n    if False:\n",
            ),
        ),
    ),
    Fault(
        "a change is known by its mtime alone",
        "stamps that a further write could still get are doubted",
        (
            Change(
                "node.sync.planner",
                "    return stat.ctime_ns if abs(now_wall_ns - newest) > window else UNSURE\n",
                "    return stat.ctime_ns\n",
            ),
            Change(
                "node.sync.planner",
                "        and observed.executable == agreed.executable\n"
                "        and observed.ctime_ns == agreed.ctime_ns\n",
                "        and observed.executable == agreed.executable\n",
            ),
        ),
    ),
    Fault(
        "the loser of a conflict is dropped",
        "every head is shown",
        (
            Change(
                "crdt.heads",
                "    return list(kept.values())\n",
                "    return list(kept.values())[:1]\n",
            ),
        ),
    ),
    Fault(
        "an edit swallows the other heads",
        "who acts on a conflict first makes its copies real",
        (
            Change(
                "crdt.actions",
                "if head.digest not in left and (item, head.version) not in self._replaced:",
                "if False:",
            ),
            Change(
                "crdt.actions",
                "        for loser in losers:\n            self._materialise(item, loser)\n",
                "",
            ),
        ),
    ),
    Fault(
        "a deletion wins over an edit",
        "an edit that the deleter had not seen survives",
        (
            Change(
                "crdt.heads",
                "    return not deletions or not all(\n",
                "    return not deletions or not any(\n",
            ),
        ),
    ),
    Fault(
        "a gap in a log is accepted",
        "an entry is taken when all before it are there",
        (
            Change("crdt.acceptance", "    if wait is not None:\n        return wait\n", ""),
            Change(
                "node.index.log",
                "assert header.seq == previous + 1",
                "assert header.seq > previous",
            ),
        ),
    ),
    Fault(
        "entries are counted before they are stored",
        "the version vector says what is durable",
        (
            Change(
                "node.sync.intake",
                "        folder.log.append(entry, time_ms=written_ms(folder, body))\n",
                "        folder.log.append(entry, time_ms=written_ms(folder, body))\n"
                "        folder.database.connection.execute('COMMIT')\n"
                "        folder.database.connection.execute('BEGIN')\n",
            ),
        ),
    ),
    Fault(
        "half of an entry is applied",
        "all writes of an entry count",
        (
            Change(
                "node.sync.intake",
                "            self._folder.look_at(self._folder.tree.apply(writes))\n",
                "            self._folder.look_at(self._folder.tree.apply(writes[:3]))\n",
            ),
        ),
    ),
    Fault(
        "intents are lost",
        "what the applier did before a crash is not taken for a person's doing",
        (
            Change(
                "node.sync.apply",
                "            self._folder.disk.intend(intents)\n",
                "            self._folder.disk.intend(intents[:0])\n",
            ),
        ),
    ),
    Fault(
        "what was displaced is thrown away",
        "what a crash left in tmp may be the only copy",
        (
            Change(
                "node.sync.recovery",
                "    fs.rename(path, target)\n    return f",
                "    fs.unlink(path)\n    return f",
            ),
        ),
    ),
    Fault(
        "nobody looks after what was displaced",
        "what is written to a displaced file comes back",
        (
            Change(
                "node.sync.afterlook",
                "        if (stat.size, stat.mtime_ns) != (look.size, look.mtime_ns):\n"
                "            return None\n",
                "        return stat.ctime_ns\n",
            ),
        ),
    ),
    Fault(
        "blocks are not checked",
        "a block's hash is checked after it was read",
        (
            Change(
                "node.blocks.read",
                "    if len(data) != ref.length or block_id(key, data) != ref.block:\n",
                "    if len(data) != ref.length:\n",
            ),
        ),
    ),
    Fault(
        "a file that changes while it is read is taken",
        "a file is taken only if its stat is the same before and after",
        (
            Change(
                SCAN,
                "isinstance(result, Described) and result.stat.inode != candidate.stat.inode:",
                "result is None:",
            ),
        ),
    ),
    Fault(
        "moves are not recognised",
        "an item keeps its identity through a move",
        (
            Change(
                "node.sync.moves",
                "if row.kind is not Kind.DIRECTORY or await self._is_directory(row, stat, place):",
                "if False:",
            ),
        ),
    ),
    Fault(
        "a cycle is not broken",
        "in a cycle the newest move falls back",
        (Change("node.index.places", "        self._break_cycles(seeds)\n", ""),),
    ),
    Fault(
        "lost events are not made up for",
        "a watcher that lost track means a full scan",
        (
            Change(
                "node.sync.engine",
                "                case Rescan():\n                    self.scans.everything()\n",
                "                case Rescan():\n                    pass\n",
            ),
        ),
    ),
    Fault(
        "what waits is never tried again",
        "what the disk refused is retried",
        (
            Change(
                "node.sync.apply",
                '        return min(later, default=float("inf"))\n',
                '        return float("inf")\n',
            ),
        ),
    ),
    Fault(
        "a failed scan is forgotten",
        "what a failed scan did not see, the next one does",
        (
            Change(
                "node.sync.watch",
                "+ LIMITED_EVERY_S)\n            self.is_unfinished = True\n            raise\n",
                "+ LIMITED_EVERY_S * 1e9)\n            raise\n",
            ),
        ),
    ),
    Fault(
        "every twin is deleted",
        "people delete what they saw",
        (
            Change(
                COMMIT,
                "            if shown is not None and shown.revision == seen.row.revision:\n",
                "            if shown is not None:\n",
            ),
        ),
    ),
    Fault(
        "an edit is based on what is newest, not on what was seen",
        "an edit replaces what its author saw",
        (
            Change(
                COMMIT,
                "    base = seen.row.version\n",
                "    base = seen.row.version if shown is None else shown.content.version\n",
            ),
        ),
    ),
    Fault(
        "a deletion is forgotten",
        "what was deleted stays deleted",
        (
            Change(
                "crdt.actions",
                "deleted=own.deleted if deleted is None and own is not None else deleted,",
                "deleted=deleted,",
            ),
        ),
    ),
    Fault(
        "a merge forgets one side",
        "texts that are merged hold what each side changed",
        (Change("crdt.merge_text", "    sides = [", "    heads = heads[:1]\n    sides = ["),),
    ),
    Fault(
        "signatures are not checked",
        "an entry is taken if its author signed it",
        (Change("crdt.acceptance", "if not entry.verify_signature():", "if False:"),),
        seeds=5,
    ),
    Fault(
        "roles are not checked",
        "a reader's writes are refused",
        (Change("crdt.acceptance", "if not role.writes:", "if False:"),),
        seeds=5,
    ),
    Fault(
        "a removal is ignored",
        "what a removed device writes, knowing it, is put aside",
        (Change("crdt.acceptance", "if roster.knew_removal(entry):", "if False:"),),
        seeds=5,
    ),
    Fault(
        "forks are not noticed",
        "an entry names the one before it",
        (
            Change(
                "crdt.acceptance",
                "    if header.seq == position.seq + 1 and header.prev_hash != position.head:\n"
                "        return Fork(entry, position.seq)\n",
                "",
            ),
        ),
        seeds=10,
    ),
)
