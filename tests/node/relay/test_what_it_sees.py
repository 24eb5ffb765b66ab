"""What a relay stores and reads is what docs/threat-model.md lists, field by field, and no more."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import trio.testing

from crdt import roster_ops
from crdt.entry import Entry, EntryKind, Header
from node.relay import server
from node.relay.schema import open_database
from node.relay.sqlite_storage import SqliteStorage
from tests.support.relay_world import RelayHost, World
from tests.support.two_folders import InlineThreads, SeededRandom
from transport import frames
from transport.frames import FrameDecoder
from transport.messages import Message, Want

DOCUMENT = Path(__file__).resolve().parents[3] / "docs/threat-model.md"
SECRET_NAME = "a-name-that-nobody-may-read.txt"
SECRET_TEXT = b"a content that nobody may read\n"


def listed(table: str) -> dict[str, list[str]]:
    """The table of the threat model whose first column has this heading."""
    text = DOCUMENT.read_text()
    body = text.split(f"| {table} | fields |\n|---|---|\n")[1].split("\n\n")[0]
    rows = [row.split("|")[1:3] for row in body.splitlines()]
    return {name.strip(" `"): re.findall(r"`(\w+)`", fields) for name, fields in rows}


def fields(kinds: Iterable[type]) -> dict[str, list[str]]:
    return {
        kind.__name__: [one.name for one in dataclasses.fields(kind) if one.init] for kind in kinds
    }  # type: ignore[arg-type, unused-ignore]


def test_the_tables(tmp_path: Path) -> None:
    db = open_database(tmp_path / "relay.sqlite")
    try:
        tables = {
            name: [column for _, column, *_ in db.execute(f"PRAGMA table_info({name})")]
            for (name,) in db.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            )
        }
    finally:
        db.close()
    assert listed("stored") == {**tables, "packs/": []}


def test_the_entries() -> None:
    operations = [kind for kind in vars(roster_ops).values() if hasattr(kind, "tag")]
    assert listed("in an entry") == fields([Entry, Header, *operations])


def test_the_messages() -> None:
    """Those that may open a stream to a relay, and those that may follow."""
    openers = set(server.STREAMS_MAX)
    following = {kind for opener in openers for kind in frames._FOLLOWING[opener]}
    assert listed("received") == fields(openers | following)


@pytest.mark.slow
async def test_a_conversation(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What really arrives and is written when members work: only that, and nothing in the clear."""
    heard: list[Message] = []

    class Overheard(FrameDecoder):
        def feed(self, data: bytes) -> list[Message]:
            messages = super().feed(data)
            heard.extend(messages)
            return messages

    monkeypatch.setattr(server, "FrameDecoder", Overheard)
    world = World(2)
    relay = RelayHost(world, 1)
    storage = SqliteStorage(tmp_path, InlineThreads(), SeededRandom(1))
    relay.storage = storage
    first, second = world.members
    async with relay.awake():
        await world.introduce(relay)
        first.write(SECRET_NAME, SECRET_TEXT)
        first.write("large", SECRET_TEXT * 1_000)
        async with first.awake():
            await first.held_by(2)
        async with second.awake():
            await second.until(lambda: second.tree().get(SECRET_NAME) == SECRET_TEXT)
            await second.until(lambda: "large" in second.tree())
            second.write("more", b"by the second\n")
            await second.held_by(2)
    storage.close()

    kinds = {type(message).__name__ for message in heard}
    assert {"Host", "Hello", "Have", "Entries", "Offer", "Put", "Want"} <= kinds
    assert kinds <= listed("received").keys() - {"Keeps"}
    assert not any(message.held for message in heard if isinstance(message, Want))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert SECRET_NAME.encode() not in data, path
            assert SECRET_TEXT not in data, path
    entries = stored_entries(tmp_path)
    assert {entry.header.kind for entry in entries} == {EntryKind.TREE, EntryKind.ROSTER}
    names = [member.name for member in world.members]
    clear = b"".join(e.body for e in entries if e.header.kind is EntryKind.ROSTER)
    assert all(name.encode() in clear for name in names), (
        "the threat model says that it learns them"
    )


def stored_entries(directory: Path) -> list[Entry]:
    db = open_database(directory / "relay.sqlite")
    try:
        return [Entry.from_bytes(row) for (row,) in db.execute("SELECT entry FROM entries")]
    finally:
        db.close()
