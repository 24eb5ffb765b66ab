"""Identifiers: sizes, text, check characters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.ids import RECOVERED, ROOT, BlockId, DeviceId, FolderId, ItemId

DEVICES = st.binary(min_size=32, max_size=32).map(DeviceId)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


@pytest.mark.parametrize("kind", [DeviceId, FolderId, ItemId, BlockId])
def test_an_id_has_exactly_its_size(kind: type[DeviceId | FolderId | ItemId | BlockId]) -> None:
    assert kind(bytes(kind.size)) == bytes(kind.size)
    for size in (0, kind.size - 1, kind.size + 1):
        with pytest.raises(ValueError, match="needs"):
            kind(bytes(size))


@given(DEVICES)
def test_a_device_reads_back_from_its_text(device: DeviceId) -> None:
    text = device.text
    assert [len(group) for group in text.split("-")] == [14] * 4
    assert DeviceId.from_text(text) == device
    assert DeviceId.from_text(text.lower().replace("-", " ")) == device
    assert text.startswith(device.short)
    assert str(device) == text


@given(DEVICES, st.integers(0, 55), st.sampled_from(ALPHABET))
def test_every_single_wrong_character_is_found(device: DeviceId, at: int, other: str) -> None:
    text = device.text.replace("-", "")
    if text[at] != other:
        with pytest.raises(ValueError, match="mistyped"):
            DeviceId.from_text(text[:at] + other + text[at + 1 :])


@pytest.mark.parametrize("text", ["", "A" * 55, "A" * 57, "1" * 56, "\u00c4" * 56])
def test_what_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="56 letters"):
        DeviceId.from_text(text)


def test_the_fixed_items_never_change() -> None:
    assert ROOT.hex() == "00" * 16
    assert RECOVERED.hex() == "343e1d6414ab05604803d56520b08f26"
