"""The identity file: made once, never replaced."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from nacl.signing import VerifyKey

from crdt.codec import pack, unpack
from crdt.errors import CallerError, WorldError
from transport import identity_seal
from transport.identity import (
    Identity,
    IdentityError,
    is_sealed,
    load_or_create,
    peer_device,
    set_passphrase,
)
from transport.identity_seal import PassphraseError

SEED = b"S" * 32


def fixed(size: int) -> bytes:
    return SEED[:size]


def never(_size: int) -> bytes:
    raise AssertionError("a new identity was made")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "identity")


def test_it_is_made_once_and_found_again(path: str) -> None:
    made = load_or_create(path, fixed)
    found = load_or_create(path, never)
    assert made.device == found.device == Identity.from_seed(SEED).device
    assert found.seed == SEED
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert os.listdir(os.path.dirname(path)) == ["identity"]


def test_it_signs_with_the_key_that_names_the_device() -> None:
    identity = Identity.from_seed(SEED)
    VerifyKey(identity.device).verify(b"data", identity.sign(b"data"))
    assert peer_device(identity.certificate) == identity.device


def test_the_certificate_never_changes() -> None:
    assert Identity.from_seed(SEED).certificate == Identity.from_seed(SEED).certificate


def test_it_does_not_show_its_secret() -> None:
    identity = Identity.from_seed(SEED)
    assert repr(identity) == f"Identity({identity.device.short})"


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda _: b"",
        lambda _: bytes(1000),
        lambda _: pack([1, 2]),
        lambda data: pack({**unpack(data, size_max=256), "seed": b"T" * 32}),
        lambda data: pack({**unpack(data, size_max=256), "more": 1}),
        lambda data: pack({**unpack(data, size_max=256), "version": 0, "checksum": b""}),
    ],
)
def test_a_damaged_file_is_reported_and_left_alone(
    path: str, damage: Callable[[bytes], bytes]
) -> None:
    load_or_create(path, fixed)
    data = damage(Path(path).read_bytes())
    Path(path).write_bytes(data)
    with pytest.raises(IdentityError, match="not touched") as error:
        load_or_create(path, never)
    assert error.value.exit_code == 20
    assert Path(path).read_bytes() == data


def test_a_newer_file_asks_for_an_update(path: str) -> None:
    Path(path).write_bytes(pack({"version": 3, "something": "new"}))
    with pytest.raises(IdentityError, match="newer version"):
        load_or_create(path, never)


def test_an_unreadable_place_is_the_worlds_fault(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="cannot be used"):
        load_or_create(str(tmp_path / "missing" / "identity"), fixed)
    with pytest.raises(WorldError):
        load_or_create(str(tmp_path), never)


def test_another_process_may_be_quicker(path: str) -> None:
    def meanwhile(size: int) -> bytes:
        load_or_create(path, fixed)
        return b"L" * size

    assert load_or_create(path, meanwhile).seed == SEED


def test_a_crash_while_it_was_made_does_no_harm(path: str) -> None:
    Path(f"{path}.{os.getpid()}.new").write_bytes(b"half")
    assert load_or_create(path, fixed).seed == SEED


def test_a_seed_has_its_size() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Identity.from_seed(b"short")


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tries these passphrases."""
    monkeypatch.setattr(identity_seal, "PASSES", 1)
    monkeypatch.setattr(identity_seal, "MEMORY_SIZE", 8192)


def says(passphrase: str) -> Callable[[], str]:
    return lambda: passphrase


def test_a_passphrase_seals_the_key_and_can_be_changed_and_taken_away(path: str) -> None:
    device = load_or_create(path, fixed).device
    set_passphrase(path, os.urandom, never_asked, "correct horse")
    assert is_sealed(path)
    assert SEED not in Path(path).read_bytes()
    assert load_or_create(path, never, says("correct horse")).device == device
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    set_passphrase(path, os.urandom, says("correct horse"), "caf\u00e9 au lait")
    assert load_or_create(path, never, says("cafe\u0301 au lait")).device == device
    set_passphrase(path, os.urandom, says("caf\u00e9 au lait"), None)
    assert not is_sealed(path)
    assert load_or_create(path, never, never_asked).device == device
    assert os.listdir(os.path.dirname(path)) == ["identity"]


def never_asked() -> str:
    raise AssertionError("a passphrase was asked for")


def test_a_wrong_passphrase_changes_nothing(path: str) -> None:
    load_or_create(path, fixed)
    set_passphrase(path, os.urandom, never_asked, "correct horse")
    before = Path(path).read_bytes()
    for wrong in ("", "correct hors", "Correct horse"):
        with pytest.raises(PassphraseError, match="passphrase is wrong") as error:
            load_or_create(path, never, says(wrong))
        assert error.value.exit_code == 21
        with pytest.raises(PassphraseError):
            set_passphrase(path, os.urandom, says(wrong), "another one")
    with pytest.raises(PassphraseError, match="nobody can be asked"):
        load_or_create(path, never)
    with pytest.raises(PassphraseError, match="8 to"):
        set_passphrase(path, os.urandom, says("correct horse"), "short")
    assert Path(path).read_bytes() == before


def test_every_flipped_byte_of_a_sealed_key_is_damage_and_no_wrong_passphrase(path: str) -> None:
    load_or_create(path, fixed)
    set_passphrase(path, os.urandom, never_asked, "correct horse")
    whole = Path(path).read_bytes()
    for at in range(len(whole)):
        data = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        Path(path).write_bytes(data)
        with pytest.raises(IdentityError):
            load_or_create(path, never, never_asked)
        assert Path(path).read_bytes() == data


def test_a_passphrase_is_set_whole_or_not_at_all(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_or_create(path, fixed)
    before = Path(path).read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(WorldError, match="as it was"):
                set_passphrase(path, os.urandom, never_asked, "correct horse")
        assert Path(path).read_bytes() == before
    with pytest.raises(CallerError, match="no key"):
        set_passphrase(f"{path} elsewhere", os.urandom, never_asked, "correct horse")
