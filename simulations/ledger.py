"""What people did, and what they may therefore expect: the oracle. Knows nothing of Shoal's code.

Every content that somebody saves holds a mark that no other content has. A *version* is one saved
content; a *line of versions* is what people call a file, whatever its name. Who overwrites or
deletes something has seen what lay there at that moment, so:

1. A version that nobody replaced who had seen it must be there when the world has settled: as it
   was saved, or, where texts were merged, with its mark in the merged text.
2. What was replaced or deleted does not come back, and nothing is there twice: in the lines on
   which only one device acted since the world last was the same everywhere. Where several acted at
   once nobody can say what they had seen of names and modes, so old content may well live on.

A power cut takes what was not synced: such versions oblige nobody unless they are on that disk
after the cut, and what they replaced counts again if it is there instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

MARK: Final = re.compile(rb"<#[0-9]{5}#>")


@dataclass(slots=True)
class Version:
    """One content that somebody saved."""

    mark: bytes
    data: bytes
    line: int
    device: str
    replaced: str = ""  # by whom, and how
    unsure: bool = False  # a power cut may have taken it
    lingers: bool = False  # replaced, and yet there when the world last settled

    @property
    def must_be_there(self) -> bool:
        """Rule 1."""
        return not self.replaced and not self.unsure


@dataclass(slots=True)
class Volatile:
    """What one device did that its disk may still forget."""

    lines: set[int]
    saved: Version | None
    replaced: list[Version]


@dataclass(slots=True)
class Ledger:
    """All versions, and who did what since the world last settled."""

    versions: dict[bytes, Version] = field(default_factory=dict)
    touched: dict[int, set[str]] = field(default_factory=dict)
    left: dict[tuple[str, str], set[int]] = field(default_factory=dict)  # places lines went from
    blurred: set[int] = field(default_factory=set)  # lines that rule 2 says nothing of
    volatile: dict[str, list[Volatile]] = field(default_factory=dict)
    _lines: int = 0

    def new_mark(self) -> bytes:
        """A mark that nobody used."""
        return b"<#%05d#>" % (len(self.versions) + 1)

    def seen(self, data: bytes | None) -> list[Version]:
        """The versions that somebody sees who looks at `data`."""
        marks = MARK.findall(data) if data else []
        return [self.versions[mark] for mark in dict.fromkeys(marks) if mark in self.versions]

    def saved(
        self, device: str, path: str, mark: bytes, data: bytes, over: bytes | None, *, durable: bool
    ) -> None:
        """`device` saved `data` at `path`, having seen `over` there."""
        before = self.seen(over)
        lines = {version.line for version in before}
        if not lines:
            self._lines += 1
            lines = {self._lines}
        line = min(lines)
        version = self.versions[mark] = Version(mark, data, line, device)
        # What takes the place of a file just deleted is an edit of it, for all that one can tell.
        lines = lines | self.left.get((device, path), set())
        self._note(device, lines, version, before, f"overwritten on {device}", durable=durable)

    def removed(self, device: str, path: str, data: bytes | None, *, durable: bool = False) -> None:
        """`device` deleted a file that held `data`."""
        before = self.seen(data)
        lines = {version.line for version in before}
        self.left.setdefault((device, path), set()).update(lines)
        self._note(device, lines, None, before, f"deleted on {device}", durable=durable)

    def moved(self, device: str, data: bytes | None) -> None:
        """`device` renamed a file that holds `data`, or changed its metadata."""
        for version in self.seen(data):
            self.touched.setdefault(version.line, set()).add(device)

    def blur(self, data: bytes | None) -> None:
        """Rule 2 holds no more for the lines of this content: there are two of it, or a crash left
        open whether it was seen.
        """
        self.blurred |= {version.line for version in self.seen(data)}

    def _note(
        self,
        device: str,
        lines: set[int],
        saved: Version | None,
        before: list[Version],
        how: str,
        *,
        durable: bool,
    ) -> None:
        for line in lines:
            self.touched.setdefault(line, set()).add(device)
        if len(lines) > 1:
            self.blurred |= lines
        replaced = [version for version in before if not version.replaced]
        for version in before:
            version.replaced = version.replaced or how
            version.lingers = False
        if not durable:
            change = Volatile(lines, saved, replaced)
            self.volatile.setdefault(device, []).append(change)

    def power_cut(self, device: str, on_disk: Iterable[bytes]) -> int:
        """The disk of `device` holds `on_disk` after a cut; returns how many bytes went."""
        there, lost = set(on_disk), 0
        for change in self.volatile.pop(device, []):
            self.blurred |= change.lines
            if change.saved is not None and change.saved.data not in there:
                change.saved.unsure = True
                lost += len(change.saved.data)
            for version in change.replaced:
                if version.data in there:
                    version.replaced = ""
        return lost

    def settled(self, visible: Iterable[bytes]) -> None:
        """Everybody has seen everything; these contents are there."""
        contents = set(visible)
        self.touched.clear()
        self.left.clear()
        for version in self.versions.values():
            version.lingers = bool(version.replaced) and version.data in contents

    # --- the rules ------------------------------------------------------------------------------

    def missing(self, visible: Iterable[bytes]) -> Iterator[Version]:
        """Rule 1: versions that are not among the contents of all visible files."""
        contents = set(visible)
        for version in self.versions.values():
            if version.must_be_there and version.data not in contents:
                merged = any(version.mark in content for content in contents)
                if not merged or b"\xff" in version.data:
                    yield version

    def wrong(self, visible: list[bytes]) -> Iterator[str]:
        """Rule 2: what is there too often, or should be there no more."""
        for version in self.versions.values():
            devices = self.touched.get(version.line, set())
            if len(devices) != 1 or version.line in self.blurred or version.lingers:
                continue
            count, allowed = visible.count(version.data), int(not version.replaced)
            if count > allowed:
                yield (
                    f"{version.mark.decode()} of {version.device}, "
                    f"{version.replaced or 'the newest'}, is there {count} times, not {allowed}: "
                    f"only {min(devices)} acted on this file"
                )
