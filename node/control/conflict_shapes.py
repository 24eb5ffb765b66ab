"""Conflicts as the control API tells them: a part of `node.control.facade`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConflictVersion:
    """One version of a file in conflict. `device` and `name` are its author's; `time` is ISO 8601
    in UTC, by the author's clock.
    """

    path: str
    device: str
    name: str
    time: str


@dataclass(frozen=True, slots=True)
class ConflictInfo:
    """A file in conflict: the version that keeps the name, those that are shown as copies, and the
    last one that all were made from. Paths are relative to the folder.
    """

    path: str
    device: str
    name: str
    time: str
    copies: tuple[ConflictVersion, ...]
    ancestor: ConflictVersion | None = None


@dataclass(frozen=True, slots=True)
class ConflictText:
    """A version, and its text where it is one and is to be had."""

    version: ConflictVersion
    text: str | None = None


@dataclass(frozen=True, slots=True)
class ConflictTexts:
    """All versions of a file in conflict, the one that keeps the name first."""

    path: str
    versions: tuple[ConflictText, ...]
    ancestor: ConflictText | None = None
