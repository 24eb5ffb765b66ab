"""Recovery phrases: what people type, mistype and mix up."""

from __future__ import annotations

import pytest

from crdt.errors import CallerError
from crdt.ids import FolderId
from crdt.recovery import RecoveryPhrase
from tests.people import secret

FOLDER = FolderId(secret("folder"))
PHRASE = RecoveryPhrase(secret("secret")[:16], bytes(FOLDER[:16]))


def test_what_is_printed_is_read_again() -> None:
    assert len(PHRASE.text.split()) == 24
    assert RecoveryPhrase.from_text(PHRASE.text) == PHRASE
    assert RecoveryPhrase.from_text(f"  {PHRASE.text.upper()}\n") == PHRASE
    assert PHRASE.is_of(FOLDER)
    assert not PHRASE.is_of(FolderId(secret("another folder")))
    assert repr(PHRASE.secret) not in repr(PHRASE)


def test_another_folder_or_secret_is_another_key() -> None:
    other = RecoveryPhrase(PHRASE.secret, bytes(16))
    assert len({PHRASE.key, other.key, RecoveryPhrase(bytes(16), PHRASE.folder_prefix).key}) == 3


def test_mistakes_are_named_and_words_are_not_repeated() -> None:
    words = PHRASE.text.split()
    with pytest.raises(CallerError, match="has 24 words, this one has 23"):
        RecoveryPhrase.from_text(" ".join(words[1:]))
    with pytest.raises(CallerError, match="look at word 3, 5") as caught:
        RecoveryPhrase.from_text(" ".join([*words[:2], "xyzzy", words[3], "plugh", *words[5:]]))
    assert "xyzzy" not in str(caught.value)
    swapped = [words[1], words[0], *words[2:]]
    with pytest.raises(CallerError, match="do not fit together"):
        RecoveryPhrase.from_text(" ".join(swapped))


@pytest.mark.parametrize("at", range(24))
def test_nearly_every_wrong_word_is_noticed(at: int) -> None:
    words = PHRASE.text.split()
    refused = 0
    for wrong in ("abandon", "zoo", "ocean", "violin"):
        try:
            other = RecoveryPhrase.from_text(" ".join([*words[:at], wrong, *words[at + 1 :]]))
        except CallerError:
            refused += 1
        else:  # one in 256 passes the checksum, and is another phrase then
            assert other.key != PHRASE.key or words[at] == wrong
    assert refused >= 3
