"""Merges two texts that were made from one: a pure function of three texts.

    1. What each head changed is found line by line (`crdt.text_diff`). Equal changes count once.
    2. Changes that touch each other are looked at word by word where the format bears it (prose).
    3. What still overlaps cannot be merged: both replaced the same words, or one changed what the
       other removed. People decide then.
    4. The rest becomes insertions and deletions of one pycrdt document each, which are merged. The
       clients' ids come from the heads' versions, so every device merges alike, in either order.

No update is decoded that was not made right here. Whatever is no text, too large, or too different
is not merged: the answer is None, and the heads stay apart as conflict copies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
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
    """One side: the bytes, and the version that they are."""

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


def merge_texts(ancestor: bytes, one: Head, other: Head, *, prose: bool) -> bytes | None:
    """What `one` and `other` come to, both made from `ancestor`; the same in either order.

    Args:
        ancestor: The last text that both have seen.
        one: A head.
        other: The other head, with another version.
        prose: Whether both may have changed the same line.
    Returns:
        The text with both heads' changes, None where that cannot be told without a person.
    """
    if not all(map(is_text, (ancestor, one.data, other.data))):
        return None
    if other.data in {one.data, ancestor}:
        return one.data
    if one.data == ancestor:
        return other.data
    sides = _changes(ancestor, one.data), _changes(ancestor, other.data)
    if sides[0] is None or sides[1] is None:
        return None
    mine, theirs = _reconcile(ancestor, sides[0], sides[1], prose=prose)
    if any(_clash(a, b, ancestor, prose=prose) for a, b in _neighbours(mine, theirs)):
        return None
    mine, theirs = _end_lines(ancestor, mine, theirs)
    return _merge(ancestor, (one.version, mine), (other.version, theirs))


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


def _reconcile(
    ancestor: bytes, mine: list[_Change], theirs: list[_Change], *, prose: bool
) -> tuple[list[_Change], list[_Change]]:
    """Both sides' changes, those of theirs left out that mine holds as well."""
    if prose:
        touching = {
            change
            for pair in _neighbours(mine, theirs)
            if pair[0] != pair[1] and _near(*pair)
            for change in pair
        }
        mine, theirs = _refine(ancestor, mine, touching), _refine(ancestor, theirs, touching)
    common = set(mine) & set(theirs)
    # One version made it, not which one: the answer must not depend on the order of the heads.
    return mine, [change for change in theirs if change not in common]


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
    """Pairs that may meet: one of each side. Both lists are sorted, and disjoint in themselves."""
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


def _near(a: _Change, b: _Change) -> bool:
    return a.start <= b.end and b.start <= a.end


def _clash(a: _Change, b: _Change, ancestor: bytes, *, prose: bool) -> bool:
    """True when nobody can tell what the two changes come to together."""
    if a == b:
        return False
    if a.start == a.end and b.start == b.end:
        return a.start == b.start and not prose  # two insertions: both are kept, one after another
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


def _end_lines(
    ancestor: bytes, mine: list[_Change], theirs: list[_Change]
) -> tuple[list[_Change], list[_Change]]:
    """Give lines that both sides added at the end their ends, so that they stay lines."""
    end = len(ancestor)
    at_end = [c for side in (mine, theirs) for c in side if c.start == end]
    if len(at_end) < 2 or (ancestor and not ancestor.endswith(b"\n")):
        return mine, theirs

    def ended(change: _Change) -> _Change:
        if change.start < end or change.new.endswith(b"\n"):
            return change
        return _Change(end, end, change.new + b"\n")

    return [ended(change) for change in mine], [ended(change) for change in theirs]


# --- merging --------------------------------------------------------------------------------------


def _merge(
    ancestor: bytes,
    one: tuple[VersionVector, list[_Change]],
    other: tuple[VersionVector, list[_Change]],
) -> bytes | None:
    clients = {_client(one[0]), _client(other[0]), _ANCESTOR_CLIENT}
    changes = [*one[1], *other[1]]
    size = len(ancestor) + sum(len(c.new) - (c.end - c.start) for c in changes)
    if len(clients) < 3 or size > TEXT_SIZE_MAX:
        return None
    base = _document(_ANCESTOR_CLIENT)
    base.get("text", type=Text).insert(0, ancestor.decode())
    start = base.get_update()
    merged = _document(_ANCESTOR_CLIENT)
    merged.apply_update(start)
    for version, made in sorted((one, other), key=lambda side: _client(side[0])):
        document = _document(_client(version))
        document.apply_update(start)
        text = document.get("text", type=Text)
        with document.transaction():
            for change in reversed(made):  # from the end: what is before keeps its place
                _make(text, ancestor, change)
        merged.apply_update(document.get_update(base.get_state()))
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
