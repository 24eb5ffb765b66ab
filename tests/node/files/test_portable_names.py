from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.files.disk import DiskFileSystem
from node.files.layout import is_ours
from node.files.memory import MemoryFileSystem
from node.files.port import NAME_BYTES_MAX
from node.files.portable_names import (
    Personality,
    alias,
    local_name,
    possible,
    probe,
    storable,
)

LINUX = Personality()
MAC = Personality(folds_case=True, folds_unicode=True)
HFS = Personality(folds_case=True, folds_unicode=True, stores_decomposed=True)
WINDOWS = Personality(folds_case=True, windows_names=True)
ALL = [LINUX, MAC, HFS, WINDOWS]


@pytest.mark.parametrize(
    "name",
    [
        "aux",
        "AUX.txt",
        "con",
        "nul.tar.gz",
        "com1",
        "LPT9.x",
        "com¹",
        "a:b",
        "a<b",
        "a?",
        "a\x01b",
        "dot.",
        "space ",
        "a\\b",
        "aux .txt",
        "CONIN$",
    ],
)
def test_what_windows_cannot_hold(name: str) -> None:
    assert not storable(name, WINDOWS)
    assert storable(name, LINUX)
    other = alias(name, lambda _: False, WINDOWS)
    assert storable(other, WINDOWS)
    assert other != name


@pytest.mark.parametrize("name", ["auxiliary", "com", "com10", ".aux", "a.con", "x. y", "ünï.txt"])
def test_what_windows_can_hold(name: str) -> None:
    assert storable(name, WINDOWS)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * 256, "\ud800"])
@pytest.mark.parametrize("personality", ALL)
def test_what_nobody_can_hold(name: str, personality: Personality) -> None:
    assert not possible(name, personality)


def test_names_that_would_lead_into_our_directory_get_an_alias() -> None:
    assert possible(".sho\u200cal", LINUX)
    assert not storable(".sho\u200cal", LINUX)
    assert not is_ours(alias(".sho\u200cal", lambda _: False, LINUX))


def test_which_names_are_one() -> None:
    assert LINUX.key("Makefile") != LINUX.key("makefile")
    assert MAC.key("Makefile") == MAC.key("makefile")
    assert MAC.key("\u00e9") == MAC.key("e\u0301") == MAC.key("\u00c9")
    assert WINDOWS.key("\u00e9") != WINDOWS.key("e\u0301")
    assert HFS.stored("\u00e9") == "e\u0301"


def test_an_alias_keeps_the_extension_and_is_stable() -> None:
    first = alias("aux.txt", lambda _: False, WINDOWS)
    assert first.startswith("aux~")
    assert first.endswith(".txt")
    assert alias("aux.txt", lambda _: False, WINDOWS) == first
    assert alias("aux.txt", lambda name: name == first, WINDOWS) != first
    assert alias("AUX.txt", lambda _: False, WINDOWS) != first


def test_a_name_is_kept_where_it_can_be() -> None:
    assert local_name("Makefile", lambda _: False, MAC) == "Makefile"
    assert local_name("Makefile", lambda name: name == "Makefile", MAC).startswith("Makefile~")
    assert local_name("caf\u00e9", lambda _: False, HFS) == "cafe\u0301"


def test_everything_taken_is_an_error() -> None:
    with pytest.raises(ValueError, match="stand in"):
        alias("x", lambda _: True, LINUX)


@given(
    st.text(max_size=300).filter(lambda text: "/" not in text and "\0" not in text),
    st.sampled_from(ALL),
)
def test_an_alias_can_always_be_stored(name: str, personality: Personality) -> None:
    other = alias(name, lambda _: False, personality)
    assert storable(other, personality)
    assert len(other.encode()) <= NAME_BYTES_MAX
    assert personality.stored(other) == other


@pytest.mark.parametrize("personality", ALL)
def test_probing_finds_the_personality(personality: Personality) -> None:
    fs = MemoryFileSystem(personality=personality)
    fs.mkdir("tmp")
    found = probe(fs, "tmp", windows=False)
    if personality is WINDOWS:  # its table folds case only, and so does ours
        assert found.windows_names
    assert found == personality
    assert fs.scandir("tmp") == []


def test_probing_this_disk(tmp_path: Path) -> None:
    fs = DiskFileSystem(tmp_path)
    try:
        found = probe(fs, "")
        again = probe(fs, "")
    finally:
        fs.close()
    assert found == again
    assert not list(tmp_path.iterdir())
