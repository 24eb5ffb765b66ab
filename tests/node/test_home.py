"""What lies in a home and rotted, or was written by somebody: reported, or left out; no crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from crdt.codec import pack, unpack
from crdt.entry import EntryKind
from crdt.errors import IntegrityError
from crdt.ids import FolderId
from node.history.policy import Policy
from node.history.settings import FILE, load_policy
from node.home import FolderConfig, Home
from tests.people import Person, secret

PEERS = (("192.0.2.1", 4711), ("host.example", 1))
CONFIG = FolderConfig(FolderId(secret("f")), "/srv/Shoal", bytes(16), secret("i"), PEERS)


def test_a_configuration_reads_back(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.save(CONFIG)
    assert list(home.folders()) == [CONFIG]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (2, ""),
        (2, "a\0b"),
        (3, bytes(15)),
        (4, 7),
        (4, bytes(31)),
        (5, [7]),
        (5, [["host", None]]),
        (5, [["host", []]]),
        (5, [["host", True, 1]]),
        (5, [[b"host", 1]]),
        (5, [["host", 0]]),
        (5, [["host", 65_536]]),
        (5, [["a\nb", 1]]),
        (6, 1),
    ],
)
def test_a_damaged_configuration_is_reported_and_left_alone(
    tmp_path: Path, field: int, value: object
) -> None:
    home = Home(tmp_path)
    home.save(CONFIG)
    path = home.directory(CONFIG.folder) / "config"
    wire = unpack(path.read_bytes(), size_max=10_000)
    path.write_bytes(pack([*wire[:field], value, *wire[field + 1 :]]))
    before = path.read_bytes()
    with pytest.raises(IntegrityError, match="is damaged"):
        list(home.folders())
    assert path.read_bytes() == before


def test_a_configuration_of_another_folder_is_none(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.save(CONFIG)
    home.directory(CONFIG.folder).rename(home.directory(FolderId(secret("g"))))
    with pytest.raises(IntegrityError, match="another folder"):
        list(home.folders())


def test_damaged_entries_of_a_stored_roster_are_left_out(tmp_path: Path) -> None:
    alice, bob = Person("alice"), Person("bob")
    alice.found()
    alice.admit(bob, alice.invite("for bob"))
    entries = [one.to_bytes() for one in alice.arrivals if one.header.kind is EntryKind.ROSTER]
    home = Home(tmp_path)
    home.save_roster(alice.folder, entries)
    assert home.roster(alice.folder) == entries
    path = home.directory(alice.folder) / "roster"
    whole = path.read_bytes()
    for at in range(0, len(whole), 61):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        read = home.roster(alice.folder)
        assert read == [one for one in entries if one in read]  # nothing else, in its order
        assert len(read) < len(entries)


@pytest.mark.parametrize(
    "text", ["[" * 4000, '{"all_s": Infinity, "daily_s": 1, "share": 1, "size": 1}', "7", "\udcff"]
)
def test_damaged_history_settings_are_the_defaults(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_bytes(text.encode(errors="surrogateescape"))
    assert load_policy(tmp_path) == Policy()
