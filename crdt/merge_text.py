"""Merges texts that were made from one: a pure function of the texts and their versions.

    1. What each head changed is found line by line (`crdt.text_diff`). Equal changes count once.
    2. Changes that touch each other are looked at word by word where the format bears it (prose).
    3. What still overlaps cannot be merged: two replaced the same words, or one changed what
       another removed. People decide then.
    4. The rest becomes insertions and deletions of one pycrdt document a head, which are merged.
       The clients' ids come from the heads' versions, so every device merges alike, in any order.

No update is decoded that was not made right here. Whatever is no text, too large, or too different
is not merged: the answer is None, and the heads stay apart as conflict copies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import blake3
from pycrdt import Doc, Text

from crdt.codec import pack
from crdt.text_diff import differences
from crdt.version_vector import VersionVector

TEXT_SIZE_MAX: Final = 1024 * 1024  # bytes, of each text and of what comes out
PROSE_ENDINGS: Final = (".md", ".markdown", ".txt", ".text", ".rst", ".org", ".adoc")

_ANCESTOR_CLIENT: Final = 1
_CLIENTS: Final = 1 << 53  # what pycrdt takes
_CONTEXT: Final = "shoal v1 text merge client"
_LINE: Final = re.compile(rb"[^\n]*\n|[^\n]+")
# Bytes, and only ASCII told apart: other versions of Python know other letters.
_WORD: Final = re.compile(rb"[A-Za-z0-9_]+|[\x00-\x7f]|[\x80-\xff][\x80-\xbf]*")


@dataclass(frozen=True, slots=True)
class Head:
    """Some text, and the version that it is."""

    version: VersionVector
    data: bytes


@dataclass(frozen=True, slots=True, order=True)
class _Change:
    """`ancestor[start:end]` is replaced by `new`; offsets in bytes."""

    start: int
    end: int
    new: bytes


def is_prose(name: str) -> bool:
    """True for formats in which words of one line may come from two devices."""
    return name.lower().endswith(PROSE_ENDINGS)


def is_text(data: bytes) -> bool:
    """True for what may be merged at all."""
    if len(data) > TEXT_SIZE_MAX or b"\0" in data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def merge_texts(ancestor: bytes, heads: Sequence[Head], *, prose: bool) -> bytes | None:
    """What the heads come to, all made from `ancestor`; the same in any order.

    Args:
        ancestor: The last text that all have seen.
        heads: Two or more, with distinct versions.
        prose: Whether several may have changed the same line.
    Returns:
        The text with all heads' changes, None where that cannot be told without a person.
    """
    if not all(map(is_text, (ancestor, *(head.data for head in heads)))):
        return None
    clients = {_client(head.version): head.data for head in heads}
    if len(clients) < len(heads) or _ANCESTOR_CLIENT in clients:
        return None
    sides = [(client, _changes(ancestor, data)) for client, data in sorted(clients.items())]
    found = [changes for _, changes in sides if changes is not None]
    if len(found) < len(sides):
        return None
    if prose:
        found = _refine_all(ancestor, found)
    found = _once(found)
    for one, other in combinations(found, 2):
        if any(_clash(a, b, ancestor, prose=prose) for a, b in _neighbours(one, other)):
            return None
    return _merge(ancestor, [client for client, _ in sides], _end_lines(ancestor, found))


# --- what each head changed -----------------------------------------------------------------------


def _changes(ancestor: bytes, head: bytes) -> list[_Change] | None:
    return _differing(_LINE.findall(ancestor), _LINE.findall(head), 0)


def _differing(old: Sequence[bytes], new: Sequence[bytes], offset: int) -> list[_Change] | None:
    blocks = differences(old, new)
    if blocks is None:
        return None
    changes, at, piece = [], offset, 0
    for block in blocks:
        at += sum(map(len, old[piece : block.old_start]))
        size = sum(map(len, old[block.old_start : block.old_end]))
        changes.append(_Change(at, at + size, b"".join(new[block.new_start : block.new_end])))
        at, piece = at + size, block.old_end
    return changes


def _refine_all(ancestor: bytes, sides: list[list[_Change]]) -> list[list[_Change]]:
    """The sides' changes, word by word where they touch each other."""
    touching = {
        change
        for one, other in combinations(sides, 2)
        for pair in _neighbours(one, other)
        if pair[0] != pair[1]
        for change in pair
    }
    return [_refine(ancestor, changes, touching) for changes in sides]


def _once(sides: list[list[_Change]]) -> list[list[_Change]]:
    """The sides' changes, each left out where an earlier side holds the same."""
    seen: set[_Change] = set()
    found = []
    for changes in sides:
        found.append([change for change in changes if change not in seen])
        seen.update(changes)
    return found


def _refine(ancestor: bytes, changes: list[_Change], coarse: set[_Change]) -> list[_Change]:
    """Word by word, what was found line by line."""
    found: list[_Change] = []
    for change in changes:
        finer = None
        if change in coarse:
            old, new = ancestor[change.start : change.end], change.new
            finer = _differing(_WORD.findall(old), _WORD.findall(new), change.start)
        found += [change] if finer is None else finer
    return found


def _neighbours(mine: list[_Change], theirs: list[_Change]) -> list[tuple[_Change, _Change]]:
    """Pairs that touch each other: one of each side. Both lists are sorted and disjoint."""
    pairs: list[tuple[_Change, _Change]] = []
    first = 0
    for a in mine:
        while first < len(theirs) and theirs[first].end < a.start:
            first += 1
        at = first
        while at < len(theirs) and theirs[at].start <= a.end:
            pairs.append((a, theirs[at]))
            at += 1
    return pairs


def _clash(a: _Change, b: _Change, ancestor: bytes, *, prose: bool) -> bool:
    """True when nobody can tell what the two changes come to together."""
    if a == b:
        return False
    if a.start == a.end and b.start == b.end:
        return a.start == b.start and not prose  # two insertions: both are kept
    if b.start == b.end:
        a, b = b, a
    if a.start == a.end:
        at_end = a.start == b.end and not prose and b.end - b.start == _width(ancestor, b.start)
        return b.start < a.start < b.end or at_end
    return max(a.start, b.start) < min(a.end, b.end)


def _width(text: bytes, at: int) -> int:
    """Bytes of the character at `at`."""
    lead = text[at]
    return 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


def _end_lines(ancestor: bytes, sides: list[list[_Change]]) -> list[list[_Change]]:
    """Give lines that several added at the end their ends, so that they stay lines."""
    end = len(ancestor)
    at_end = [change for changes in sides for change in changes if change.start == end]
    if len(at_end) < 2 or (ancestor and not ancestor.endswith(b"\n")):
        return sides

    def ended(change: _Change) -> _Change:
        if change.start < end or change.new.endswith(b"\n"):
            return change
        return _Change(end, end, change.new + b"\n")

    return [[ended(change) for change in changes] for changes in sides]


# --- merging --------------------------------------------------------------------------------------


def _merge(ancestor: bytes, clients: list[int], sides: list[list[_Change]]) -> bytes | None:
    """Let one pycrdt client make each side's changes, and read what they come to."""
    changes = [change for made in sides for change in made]
    size = len(ancestor) + sum(len(c.new) - (c.end - c.start) for c in changes)
    if size > TEXT_SIZE_MAX:
        return None
    merged = _document(_ANCESTOR_CLIENT)
    merged.get("text", type=Text).insert(0, ancestor.decode())
    start, state = merged.get_update(), merged.get_state()
    for client, made in zip(clients, sides, strict=True):
        document = _document(client)
        document.apply_update(start)
        text = document.get("text", type=Text)
        with document.transaction():
            for change in reversed(made):  # from the end: what is before keeps its place
                _make(text, ancestor, change)
        merged.apply_update(document.get_update(state))
    result = str(merged.get("text", type=Text)).encode()
    return result if len(result) == size else None


def _document(client: int) -> Doc[Text]:
    return Doc(client_id=client)


def _make(text: Text, ancestor: bytes, change: _Change) -> None:
    """Carry out one change; pycrdt counts bytes of UTF-8."""
    if change.start == change.end:
        text.insert(change.start, change.new.decode())
        return
    # New text stands amid what it replaces, so that it keeps its place beside what another head
    # inserts right before or after it.
    middle = change.start + _width(ancestor, change.start)
    if change.new:
        text.insert(middle, change.new.decode())
    after = middle + len(change.new)
    if change.end > middle:
        del text[after : after + change.end - middle]
    del text[change.start : middle]


def _client(version: VersionVector) -> int:
    digest: bytes = blake3.blake3(pack(version.to_wire()), derive_key_context=_CONTEXT).digest(8)
    return int.from_bytes(digest, "big") % (_CLIENTS - 2) + 2
