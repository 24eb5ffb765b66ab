"""The identity file: made once, never replaced."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from nacl.signing import VerifyKey

from crdt.codec import pack, unpack
from crdt.errors import WorldError
from transport.identity import Identity, IdentityError, load_or_create, peer_device

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
    Path(path).write_bytes(pack({"version": 2, "something": "new"}))
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
