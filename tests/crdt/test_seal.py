from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.errors import IntegrityError
from crdt.ids import DeviceId, FolderId
from crdt.seal import (
    BOX_OVERHEAD,
    SEAL_OVERHEAD,
    EpochKey,
    FolderKeys,
    device_of,
    is_public_key,
    open_box,
    open_sealed,
    pad,
    padded_size,
    seal,
    seal_to,
    sign,
    unpad,
    verify,
)

KEY, NONCE, SEED = bytes(range(32)), bytes(range(24)), bytes(range(32, 64))
FOLDER = FolderId(bytes(32))


def flips(data: bytes) -> list[bytes]:
    """`data` with each byte changed in turn."""
    return [data[:i] + bytes([data[i] ^ 0x41]) + data[i + 1 :] for i in range(len(data))]


def cuts(data: bytes) -> list[bytes]:
    return [*(data[:i] for i in range(len(data))), data + b"\0"]


def test_a_seal_opens_to_what_was_sealed() -> None:
    sealed = seal(KEY, b"text", nonce=NONCE, associated=b"here")
    assert len(sealed) == 4 + SEAL_OVERHEAD
    assert open_sealed(KEY, sealed, associated=b"here") == b"text"


def test_a_seal_is_refused_with_any_byte_changed_cut_or_added() -> None:
    sealed = seal(KEY, b"text", nonce=NONCE, associated=b"here")
    for bad in flips(sealed) + cuts(sealed):
        with pytest.raises(IntegrityError):
            open_sealed(KEY, bad, associated=b"here")


def test_a_seal_is_refused_elsewhere_and_under_another_key() -> None:
    sealed = seal(KEY, b"text", nonce=NONCE, associated=b"here")
    with pytest.raises(IntegrityError):
        open_sealed(KEY, sealed, associated=b"there")
    with pytest.raises(IntegrityError):
        open_sealed(SEED, sealed, associated=b"here")


@pytest.mark.parametrize(("key", "nonce"), [(KEY[1:], NONCE), (KEY, NONCE[1:])])
def test_a_key_or_nonce_of_another_size_is_our_own_mistake(key: bytes, nonce: bytes) -> None:
    with pytest.raises(ValueError, match="key of 32 bytes"):
        seal(key, b"", nonce=nonce, associated=b"")


def test_a_box_opens_for_its_recipient_alone() -> None:
    box = seal_to(device_of(SEED), b"secret", seed=KEY, associated=b"here")
    assert len(box) == 6 + BOX_OVERHEAD
    assert open_box(SEED, box, associated=b"here") == b"secret"
    with pytest.raises(IntegrityError):
        open_box(KEY, box, associated=b"here")
    with pytest.raises(IntegrityError):
        open_box(SEED, box, associated=b"there")


def test_a_box_is_refused_with_any_byte_changed_cut_or_added() -> None:
    box = seal_to(device_of(SEED), b"secret", seed=KEY, associated=b"here")
    low_order = box[:1] + bytes(32) + box[33:]
    for bad in [*flips(box), *cuts(box), low_order]:
        with pytest.raises(IntegrityError):
            open_box(SEED, bad, associated=b"here")


def test_one_seed_makes_unrelated_boxes_for_whatever_differs() -> None:
    mine, yours = device_of(SEED), device_of(KEY)
    boxes = [
        seal_to(recipient, plain, seed=KEY, associated=place)[1:33]
        for recipient in (mine, yours)
        for plain in (b"a", b"b")
        for place in (b"here", b"there")
    ]
    assert len(set(boxes)) == 8


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31), b"\xff" * 32])
def test_nothing_is_sealed_to_a_key_that_is_none(point: bytes) -> None:
    assert not is_public_key(DeviceId(point))
    with pytest.raises(ValueError, match="not a valid public key"):
        seal_to(DeviceId(point), b"secret", seed=KEY, associated=b"")


def test_a_signature_holds_for_its_author_context_and_data_alone() -> None:
    device = device_of(SEED)
    signature = sign(SEED, "use", b"data")
    assert verify(device, "use", b"data", signature)
    assert not verify(device_of(KEY), "use", b"data", signature)
    assert not verify(device, "us", b"edata", signature)
    assert not verify(device, "other", b"data", signature)
    assert not any(verify(device, "use", b"data", bad) for bad in flips(signature))
    assert not any(verify(device, "use", bad, signature) for bad in flips(b"data"))
    assert not any(verify(device, "use", b"data", bad) for bad in cuts(signature))


def test_a_key_of_low_order_signs_nothing() -> None:
    assert not verify(DeviceId(b"\1" + bytes(31)), "use", b"data", bytes(64))


@given(st.integers(1, 2**50))
def test_padding_costs_at_most_12_percent_and_never_shrinks(size: int) -> None:
    assert size <= padded_size(size) <= size * 1.12
    assert padded_size(padded_size(size)) == padded_size(size)


def test_padme_gives_the_sizes_of_the_paper() -> None:
    assert [padded_size(size) for size in (1, 8, 9, 17, 100, 1000, 4097)] == [
        1, 8, 10, 18, 104, 1024, 4352,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="1 or more"):
        padded_size(0)


@given(st.binary(max_size=300))
def test_padding_comes_off_again(data: bytes) -> None:
    padded = pad(data)
    assert len(padded) == padded_size(len(data) + 1)
    assert unpad(padded) == data


@pytest.mark.parametrize("bad", [b"", b"\0\0", b"text", b"text\x80" + bytes(9)])
def test_other_padding_is_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match="padding"):
        unpad(bad)


def test_every_use_epoch_and_folder_has_its_own_key() -> None:
    epochs = [
        EpochKey(folder, secret)
        for folder in (FOLDER, FolderId(b"\1" * 32))
        for secret in (KEY, SEED)
    ]
    keys = [
        key
        for one in epochs
        for key in (
            one.commitment,
            one.entry_key,
            one.block_key,
            one.pack_name_key,
            one.previous_key,
            one.block_id_key,
        )
    ]
    assert len(set(keys)) == len(keys) == 24
    assert len({one.number for one in epochs}) == 4
    assert all(0 < one.number <= 2**48 for one in epochs)


def test_secrets_do_not_show() -> None:
    key = EpochKey(FOLDER, KEY)
    keys = FolderKeys(FOLDER, {key.number: key}, key.number, key.number)
    for shown in (repr(key), repr(keys)):
        assert KEY.hex() not in shown
        assert repr(KEY) not in shown


def test_a_key_that_has_not_come_yet_is_named() -> None:
    keys = FolderKeys(FOLDER, {}, 7, None)
    with pytest.raises(IntegrityError, match="epoch 7"):
        _ = keys.block_id_key
