"""Spoken codes, both sides in memory: the right words, wrong ones, and somebody in between."""

from __future__ import annotations

import itertools

import blake3
import pytest

from crdt.errors import CallerError, PeerError
from crdt.ids import DeviceId
from crdt.seal import NONCE_SIZE, device_of
from transport.spoken import LIST, Guest, Host, make_code, read_code

GUEST, INVITER, OTHER = (device_of(bytes([n]) * 32) for n in (1, 2, 3))
INVITATION = "shoal1-" + "a" * 200
draws = itertools.count()


def entropy(size: int) -> bytes:
    return blake3.blake3(next(draws).to_bytes(8, "big")).digest(size)


def guest(code: str, *, me: DeviceId = GUEST, inviter: DeviceId = INVITER) -> Guest:
    return Guest(code, guest=me, inviter=inviter, entropy=entropy)


def host(code: str, *, me: DeviceId = INVITER, for_: DeviceId = GUEST) -> Host:
    return Host(code, guest=for_, inviter=me, entropy=entropy)


def talk(one: Guest, other: Host) -> str | None:
    """The invitation as the guest gets it; None when the inviter refuses."""
    proof = one.prove(other.answer(one.first()))
    sealed = other.seal(proof, INVITATION, nonce=entropy(NONCE_SIZE))
    return None if sealed is None else one.open(sealed)


def test_the_right_words_give_the_invitation() -> None:
    assert talk(guest("ocean-violin-tiger"), host("ocean-violin-tiger")) == INVITATION


@pytest.mark.parametrize("guess", ["ocean-violin-table", "violin-ocean-tiger", "zoo-zoo-zoo"])
def test_wrong_words_give_nothing(guess: str) -> None:
    assert talk(guest(guess), host("ocean-violin-tiger")) is None


def test_nobody_stands_between_with_keys_of_its_own() -> None:
    # The one in between dials the inviter with its key, and answers the guest with its key.
    code = "ocean-violin-tiger"
    assert talk(guest(code, inviter=OTHER), host(code, for_=GUEST)) is None
    assert talk(guest(code), host(code, for_=OTHER)) is None


def test_a_false_inviter_learns_no_more_than_whether_its_guess_is_right() -> None:
    one, false = guest("ocean-violin-tiger"), host("zoo-zoo-zoo")
    one.prove(false.answer(one.first()))
    with pytest.raises(CallerError, match="not the ones that were said"):
        one.open(b"\1" + bytes(100))


def test_what_is_heard_on_the_way_fits_every_code() -> None:
    """A recorded exchange gives no way to try words: for each guess the transcript might be of it.

    Whoever listens has the two elements, the proof and the seal. Words alone, without one of the
    two secret scalars, make no key; so an eavesdropper who *knows* the words opens nothing either.
    """
    code = "ocean-violin-tiger"
    one, other = guest(code), host(code)
    first = one.first()
    answer = other.answer(first)
    proof = one.prove(answer)
    sealed = other.seal(proof, INVITATION, nonce=entropy(NONCE_SIZE))
    assert sealed is not None
    for listener in (guest(code), guest("zoo-zoo-zoo")):
        listener.first()
        assert listener.prove(answer) != proof
        with pytest.raises(CallerError):
            listener.open(sealed)
    for message in (first, answer, proof, sealed):
        assert not any(word.encode() in message for word in code.split("-"))
        assert INVITATION.encode() not in message


def test_every_flipped_byte_is_refused() -> None:
    code = "ocean-violin-tiger"
    for which in range(3):
        for at in range(40):
            one, other = guest(code), host(code)
            steps: list[bytes] = []

            def spoil(data: bytes, step: int, which: int = which, at: int = at) -> bytes:
                steps.append(data)  # noqa: B023 - used within this turn
                if step != which:
                    return data
                at %= len(data)
                return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

            try:
                answer = spoil(other.answer(spoil(one.first(), 0)), 1)
                proof = spoil(one.prove(answer), 2)
                assert other.seal(proof, INVITATION, nonce=entropy(NONCE_SIZE)) is None
            except PeerError:
                pass


def test_an_invitation_that_was_changed_on_the_way_is_refused() -> None:
    code = "ocean-violin-tiger"
    one, other = guest(code), host(code)
    proof = one.prove(other.answer(one.first()))
    sealed = other.seal(proof, INVITATION, nonce=entropy(NONCE_SIZE))
    assert sealed is not None
    for at in range(len(sealed)):
        with pytest.raises(CallerError):
            one.open(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])


@pytest.mark.parametrize("junk", [b"x", b"A" * 33, b"B" + bytes(32), b"B" * 33, b"A" + bytes(32)])
def test_junk_is_the_peers_fault(junk: bytes) -> None:
    one, other = guest("zoo-zoo-zoo"), host("zoo-zoo-zoo")
    one.first()
    with pytest.raises(PeerError):
        one.prove(junk)
    with pytest.raises(PeerError):
        other.answer(b"B" + junk)


def test_codes_as_people_write_them() -> None:
    assert read_code(" Ocean VIOLIN tiger ") == "ocean-violin-tiger"
    assert read_code("ocean-violin-tiger") == "ocean-violin-tiger"
    for text in ("ocean violin", "ocean-violin-tiger-zoo", "ocean-violin-tigr", "", "shoal1-abc"):
        assert read_code(text) is None


def test_every_word_can_come_up() -> None:
    assert len(LIST) == 2048
    code = make_code(bytes)
    assert code == "-".join([LIST[0]] * 3)
    assert make_code(lambda size: b"\xff" * size) == "-".join([LIST[-1]] * 3)
