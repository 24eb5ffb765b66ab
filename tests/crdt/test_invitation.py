from __future__ import annotations

import base64

import blake3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.codec import pack
from crdt.errors import CallerError
from crdt.ids import DeviceId, FolderId
from crdt.invitation import ADDRESSES_MAX, PREFIX, Invitation
from crdt.seal import device_of

FOLDER, SECRET, INVITER = FolderId(b"f" * 32), b"s" * 32, DeviceId(b"d" * 32)
INVITATION = Invitation(
    FOLDER, SECRET, INVITER, (("192.168.1.20", 22000), ("fe80::1", 22001)), "Fotos von früher"
)


def text_of(content: object) -> str:
    data = pack(content)
    checksum = blake3.blake3(PREFIX.encode() + data).digest()[:4]
    return PREFIX + base64.b32encode(data + checksum).decode().rstrip("=")


def test_the_text_says_it_all() -> None:
    assert Invitation.from_text(INVITATION.text) == INVITATION
    assert INVITATION.key == device_of(SECRET)


def test_case_and_wrapping_do_not_matter() -> None:
    text = INVITATION.text.upper()
    wrapped = "  " + text[:50] + "\n" + text[50:] + "\r\n"
    assert Invitation.from_text(wrapped) == INVITATION


def test_the_text_is_one_short_line_of_letters_a_qr_code_likes() -> None:
    assert len(INVITATION.text) < 300
    assert set(INVITATION.text.upper()) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


def test_the_secret_does_not_show() -> None:
    assert SECRET.hex() not in repr(INVITATION)
    assert repr(SECRET) not in repr(INVITATION)


def test_every_mistyped_letter_is_noticed() -> None:
    text = INVITATION.text
    for i in range(len(PREFIX), len(text) - 1):  # the last letter has bits that mean nothing
        bad = text[:i] + ("a" if text[i] != "a" else "b") + text[i + 1 :]
        with pytest.raises(CallerError, match="mistyped or cut short"):
            Invitation.from_text(bad)


def test_every_truncation_is_noticed_and_the_secret_is_not_repeated() -> None:
    text = INVITATION.text
    for i in range(len(text) - 1):
        with pytest.raises(CallerError) as caught:
            Invitation.from_text(text[:i])
        assert text[10:20] not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not an invitation"),
        ("https://example.org", "not an invitation"),
        ("shoal2-abcd", "another version"),
        ("shoal1-ab!d", "characters that none has"),
        ("shoal1-ab8d", "characters that none has"),
        ("shoal1-" + "a" * 10_000, "too long"),
        ("shoal1-", "cut short"),
        ("shoal1-a", "cut short"),
        (text_of([FOLDER, SECRET, INVITER, []]), "malformed"),
        (text_of([FOLDER, SECRET[1:], INVITER, [], ""]), "malformed"),
        (text_of([FOLDER, SECRET, INVITER, [["host"]], ""]), "malformed"),
        (text_of([FOLDER, SECRET, INVITER, [["host", 0]], ""]), "malformed"),
        (text_of([FOLDER, SECRET, INVITER, [["", 5]], ""]), "malformed"),
        (text_of([FOLDER, SECRET, INVITER, [["h", 5]] * (ADDRESSES_MAX + 1), ""]), "malformed"),
        (text_of([FOLDER, SECRET, INVITER, [], "a\x1b[2J"]), "malformed"),
    ],
)
def test_a_bad_invitation_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(CallerError, match=message):
        Invitation.from_text(text)


@given(st.text(max_size=60), st.booleans())
def test_nothing_but_a_caller_error_comes_of_any_text(text: str, prefixed: bool) -> None:
    with pytest.raises(CallerError):
        Invitation.from_text(PREFIX + text if prefixed else text)


def test_too_much_does_not_fit() -> None:
    with pytest.raises(ValueError, match="too long"):
        Invitation(FOLDER, SECRET, INVITER, (("h" * 250, 1),) * 6)
