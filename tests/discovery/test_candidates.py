"""When which address is dialled, and what a LAN can see of a folder."""

from __future__ import annotations

from crdt.ids import DeviceId, FolderId
from discovery.candidates import (
    ADDRESSES_MAX,
    BACKOFF_MAX_S,
    BACKOFF_MIN_S,
    HINT_FRESH_S,
    HINT_TTL_S,
    LASTS_S,
    OFFER_S,
    OFFERS_MAX,
    OWN_S,
    REDIAL_S,
    STRANGER_S,
    TAG_LENGTH,
    Candidates,
    Source,
    folder_tag,
    tags_of,
)
from transport.address import Address

HOME, OFFICE = Address("10.0.0.1", 4000), Address("10.0.0.2", 4000)
PEER = DeviceId(b"p" * 32)
FOLDER = FolderId(b"f" * 32)


def place(number: int) -> Address:
    return Address(f"10.1.{number >> 8}.{number & 255}", 4000)


def test_an_address_is_offered_at_once_and_then_now_and_again() -> None:
    candidates = Candidates()
    assert candidates.next_due() is None
    candidates.add(HOME, Source.MDNS, 5.0)
    candidates.add_static(OFFICE)
    assert set(candidates.next_dial(5.0)) == {HOME, OFFICE}
    assert candidates.next_dial(5.0) == []
    assert candidates.next_due() == 5.0 + OFFER_S
    assert set(candidates.next_dial(5.0 + OFFER_S)) == {HOME, OFFICE}


def test_the_pause_doubles_up_to_a_limit_times_the_jitter() -> None:
    candidates, now, pauses = Candidates(), 0.0, []
    candidates.add_static(HOME)
    for _ in range(9):
        assert candidates.next_dial(now) == [HOME]
        candidates.failed(HOME, now, 0.5)
        due = candidates.next_due()
        assert due is not None
        assert candidates.next_dial(due - 0.01) == []
        pauses.append(due - now)
        now = due
    assert pauses == [min(BACKOFF_MIN_S * 2**i, BACKOFF_MAX_S) / 2 for i in range(9)]
    candidates.succeeded(HOME, now)
    candidates.failed(HOME, now, 1.0)
    assert candidates.next_due() == now + BACKOFF_MIN_S


def test_even_what_fails_for_days_is_tried() -> None:
    candidates, now = Candidates(), 0.0
    candidates.add_static(HOME)
    for _ in range(3000):
        due = candidates.next_due()
        assert due is not None
        now = due
        assert candidates.next_dial(now) == [HOME]
        candidates.failed(HOME, now, 1.5)
        assert candidates.next_due() is not None
    assert now < 3000 * 900


def test_a_new_hint_brings_an_address_forward_but_not_too_often() -> None:
    candidates = Candidates()
    candidates.add(HOME, Source.MDNS, 0.0)
    candidates.next_dial(0.0)
    for _ in range(8):
        candidates.failed(HOME, 1.0, 1.0)
    candidates.add(HOME, Source.MDNS, HINT_FRESH_S - 1)
    assert candidates.next_dial(HINT_FRESH_S - 1) == []
    candidates.add(HOME, Source.MDNS, HINT_FRESH_S)
    assert candidates.next_dial(HINT_FRESH_S) == [HOME]
    candidates.failed(HOME, HINT_FRESH_S, 1.0)
    candidates.add(HOME, Source.MDNS, HINT_FRESH_S + 0.5)
    assert candidates.next_dial(HINT_FRESH_S + 0.5) == []


def test_hints_grow_old_and_named_addresses_do_not() -> None:
    candidates = Candidates()
    candidates.add(HOME, Source.MDNS, 0.0)
    candidates.add_static(OFFICE)
    assert candidates.next_dial(HINT_TTL_S + 1) == [OFFICE]
    assert [state.address for state in candidates.states()] == [OFFICE]
    candidates.add(HOME, Source.MDNS, HINT_TTL_S)
    candidates.succeeded(HOME, HINT_TTL_S)
    assert HOME in candidates.next_dial(3 * HINT_TTL_S)


def test_strangers_and_ourselves_are_left_alone_for_a_time() -> None:
    candidates = Candidates()
    candidates.add(HOME, Source.MDNS, 0.0)
    candidates.add(OFFICE, Source.MDNS, 0.0)
    candidates.next_dial(0.0)
    candidates.refused(HOME, 0.0, 1.0)
    candidates.ours(OFFICE, 0.0)
    for now in (HINT_FRESH_S, 2 * HINT_FRESH_S):
        candidates.add(HOME, Source.MDNS, now)
        candidates.add(OFFICE, Source.MDNS, now)
        assert candidates.next_dial(now) == []
    assert candidates.next_dial(STRANGER_S) == [HOME]
    candidates.refused(HOME, STRANGER_S, 1.0)
    candidates.roster_changed(STRANGER_S + 1)
    assert candidates.next_dial(STRANGER_S + 1) == [HOME]
    candidates.add(OFFICE, Source.MDNS, OWN_S)
    assert OFFICE in candidates.next_dial(OWN_S)


def test_no_address_of_a_connected_device_is_dialled() -> None:
    candidates = Candidates()
    candidates.add_static(HOME)
    candidates.add_static(OFFICE)
    candidates.next_dial(0.0)
    candidates.succeeded(HOME, 0.0, PEER)
    candidates.reached(OFFICE, PEER)
    assert candidates.next_dial(100.0) == []
    assert candidates.next_due() is None
    candidates.down(PEER, 100.0, 1.0)
    assert candidates.next_dial(100.0) == []
    assert set(candidates.next_dial(100.0 + REDIAL_S)) == {HOME, OFFICE}
    candidates.up(PEER)  # it dialled us
    assert candidates.next_dial(200.0) == []


def test_connections_that_do_not_last_are_made_ever_more_rarely() -> None:
    candidates, now, pauses = Candidates(), 0.0, []
    candidates.add_static(HOME)
    for _ in range(12):
        assert candidates.next_dial(now) == [HOME]
        candidates.succeeded(HOME, now, PEER)
        candidates.down(PEER, now, 1.0)
        due = candidates.next_due()
        assert due is not None
        pauses.append(round(due - now, 3))
        now = due
    assert pauses == [min(REDIAL_S * 2**i, BACKOFF_MAX_S) for i in range(12)]
    candidates.succeeded(HOME, now, PEER)
    candidates.down(PEER, now + LASTS_S, 1.0)
    assert candidates.next_due() == now + LASTS_S + REDIAL_S


def test_a_connected_device_keeps_its_outdated_hint() -> None:
    candidates = Candidates()
    candidates.add(HOME, Source.MDNS, 0.0)
    candidates.reached(HOME, PEER)
    candidates.up(PEER)
    candidates.next_dial(2 * HINT_TTL_S)
    assert [state.peer for state in candidates.states()] == [PEER]


def test_a_flood_of_hints_is_bounded_and_cannot_push_out_what_counts() -> None:
    candidates = Candidates()
    candidates.add_static(HOME)
    candidates.add(OFFICE, Source.MDNS, 0.0)
    candidates.succeeded(OFFICE, 0.0, PEER)
    for number in range(ADDRESSES_MAX + 100):
        candidates.add(place(number), Source.MDNS, 1.0 + number)
    known = {state.address for state in candidates.states()}
    assert len(known) == ADDRESSES_MAX
    assert {HOME, OFFICE, place(ADDRESSES_MAX + 99)} <= known
    assert len(candidates.next_dial(3000.0)) == OFFERS_MAX
    full = Candidates()
    for number in range(ADDRESSES_MAX + 1):
        full.add_static(place(number))
    assert len(full.states()) == ADDRESSES_MAX


def test_those_that_failed_least_come_first() -> None:
    candidates = Candidates()
    for number in range(OFFERS_MAX):
        candidates.add(place(number), Source.MDNS, 0.0)
        candidates.failed(place(number), 0.0, 1.0)
    candidates.add(HOME, Source.MDNS, 50.0)
    assert candidates.next_dial(50.0)[0] == HOME


def test_a_source_can_take_its_word_back() -> None:
    candidates = Candidates()
    candidates.add(HOME, Source.MDNS, 0.0)
    candidates.add_static(HOME)
    candidates.withdraw(HOME, Source.MDNS)
    assert candidates.next_dial(0.0) == [HOME]
    candidates.withdraw(HOME, Source.STATIC)
    candidates.withdraw(HOME, Source.STATIC)
    assert candidates.states() == []
    candidates.failed(HOME, 0.0, 1.0)  # a dial that was under way


def test_port_zero_is_no_place() -> None:
    candidates = Candidates()
    candidates.add_static(Address("10.0.0.1", 0))
    assert candidates.states() == []


def test_tags() -> None:
    tag = folder_tag(FOLDER, 20_000)
    assert tag == "lfrq6v5xtbueg", "a known answer: other versions must find this one"
    assert len(tag) == TAG_LENGTH
    assert folder_tag(FOLDER, 20_001) != tag
    assert folder_tag(FolderId(b"g" * 32), 20_000) != tag
    tags = tags_of([FOLDER], 20_000)
    assert tags == {folder_tag(FOLDER, day): FOLDER for day in (19_999, 20_000, 20_001)}
    assert len(tags_of([FOLDER], 0)) == 2
