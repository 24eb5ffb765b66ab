"""A relay among real engines, all in one process, on a clock that jumps."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import trio
import trio.testing

from crdt.ids import DeviceId
from crdt.roster_make import invite_op, removal_ops
from crdt.roster_ops import Role
from crdt.version_vector import VersionVector
from node.relay.limits import Limits
from node.relay.policy import Policy, PolicyKind
from node.selecting import choose
from node.sync.admit import InvitationError, ask_to_join
from node.sync.relays import RelayError
from tests.support.hostile_relay import HostileRelay, Words
from tests.support.memory_storage import MemoryStorage
from tests.support.relay_world import RelayHost, World
from transport.identity import Identity
from transport.link import CloseCode, DialError
from transport.messages import Ack, Entries, Have, Message

pytestmark = pytest.mark.slow


async def test_devices_that_never_meet(autojump_clock: trio.testing.MockClock) -> None:
    world = World(2)
    anna, ben = world.members
    relay = RelayHost(world, 1)
    noise = world.noise.randbytes(300_000)
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake():
            anna.write("small.txt", b"small")
            anna.write("large.bin", noise)
            await anna.held_by(2)
        async with ben.awake():
            await ben.until(lambda: ben.tree() == anna.tree())
            ben.write("large.bin", noise + b"more")
            await ben.held_by(2)
        async with anna.awake():
            await anna.until(lambda: anna.tree() == ben.tree())
            assert not anna.warnings


async def test_a_relay_counts_once_it_has_the_blocks_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(1)
    (anna,) = world.members
    relay = RelayHost(world, 1, limits=Limits(folder_size_max=100_000))
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake():
            anna.write("small.txt", b"small")
            await anna.held_by(2)
            anna.write("large.bin", world.noise.randbytes(200_000))
            await anna.until(lambda: "is full" in anna.warnings)
            assert anna.engine.holders() == 1
            assert relay.relay.counters.deposits_over_quota_total
            anna.fs.unlink("large.bin")
            await anna.held_by(2)
            assert "is full" not in anna.warnings


async def test_a_full_relay_takes_no_entries_and_devices_sync_directly(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(2)
    anna, ben = world.members
    relay = RelayHost(world, 1, limits=Limits(folder_size_max=20_000))
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake(), ben.awake(anna.address):
            for number in range(12):
                anna.write(f"{number}.txt", world.noise.randbytes(4_000))
            await ben.until(lambda: ben.tree() == anna.tree())
            for number in range(12, 20):
                anna.write(f"{number}.txt", world.noise.randbytes(4_000))
                await ben.until(lambda: ben.tree() == anna.tree())
            await anna.until(lambda: "the folder's quota is used up" in anna.warnings)
            assert relay.relay.counters.entries_over_quota_total
            assert not anna.engine.in_sync(relay.identity.device)


async def test_a_device_has_a_quota_of_its_own(autojump_clock: trio.testing.MockClock) -> None:
    world = World(2)
    anna, ben = world.members
    relay = RelayHost(world, 1, limits=Limits(device_size_max=100_000))
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake():
            anna.write("large.bin", world.noise.randbytes(150_000))
            await anna.until(lambda: "this device's quota is used up" in anna.warnings)
        async with ben.awake():
            ben.write("ben.bin", world.noise.randbytes(50_000))
            await ben.until(lambda: "ben.bin" in ben.tree())
            with trio.move_on_after(100):
                await ben.held_by(2)
            usage = await relay.storage.usage_by_device(world.folder)
            assert usage[ben.identity.device] >= 50_000


async def test_policies(autojump_clock: trio.testing.MockClock) -> None:
    world = World(1)
    (anna,) = world.members
    relay = RelayHost(world, 1, limits=Limits(folders_max=1))
    relay.policy = Policy(PolicyKind.TOKEN, token="secret")
    async with relay.awake(), anna.awake():
        with pytest.raises(RelayError, match="takes folders by token"):
            await anna.add_relay(relay.address)
        with pytest.raises(RelayError, match="token is wrong"):
            await anna.add_relay(relay.address, "wrong")
        assert relay.relay.counters.wrong_tokens_total == 2
        assert relay.relay.counters.hosts_refused_total == 2
        await anna.add_relay(relay.address, "secret")
        await anna.held_by(2)
    other = World(2)
    other.network, relay.policy = world.network, Policy(PolicyKind.OPEN)
    async with relay.awake(), other.members[1].awake():
        with pytest.raises(RelayError, match="as many folders as it can"):
            await other.members[1].add_relay(relay.address)
    relay.policy = Policy(PolicyKind.OWNERS, owners=frozenset({DeviceId(b"\x0b" * 32)}))
    async with relay.awake(), other.members[1].awake():
        with pytest.raises(RelayError, match="certain owners"):
            await other.members[1].add_relay(relay.address)
        assert relay.relay.counters.refused_connections_total == 1
    nobody = other.members[1].address
    async with anna.awake():
        with pytest.raises(RelayError, match="does not take the folder"):
            await anna.add_relay(nobody)


async def test_a_stranger_who_says_nothing_is_thrown_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(1)
    (anna,) = world.members
    relay = RelayHost(world, 1, limits=Limits(strangers_max=2))
    async with relay.awake(), anna.awake():
        strangers = [Identity.from_seed(bytes([n]) * 32) for n in range(3)]
        connections = [
            await anna.link.dial(relay.address, identity=one, authorize=lambda _: None)
            for one in strangers[:2]
        ]
        with pytest.raises(DialError) as refused:
            await anna.link.dial(relay.address, identity=strangers[2], authorize=lambda _: None)
        assert refused.value.code is CloseCode.TOO_BUSY
        for connection in connections:
            assert (await connection.wait_closed()).code is CloseCode.NOT_A_MEMBER


async def test_what_rotted_at_the_relay_comes_again(autojump_clock: trio.testing.MockClock) -> None:
    world = World(2)
    anna, ben = world.members
    relay = RelayHost(world, 1)
    storage = relay.storage
    assert isinstance(storage, MemoryStorage)
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake():
            anna.write("large.bin", world.noise.randbytes(300_000))
            await anna.held_by(2)
        blocks = storage._folders[world.folder].blocks
        for block in list(blocks)[:2]:
            storage.corrupt(world.folder, block)
        async with ben.awake():
            with trio.move_on_after(100):
                await ben.until(lambda: ben.tree() == anna.tree())
            assert "large.bin" not in ben.tree()
        async with anna.awake():
            await anna.held_by(2)
        async with ben.awake():
            await ben.until(lambda: ben.tree() == anna.tree())


async def test_a_relay_from_yesterday_s_backup_is_told_and_healed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(2)
    anna, ben = world.members
    relay = RelayHost(world, 1)
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake():
            anna.write("old.bin", world.noise.randbytes(50_000))
            await anna.held_by(2)
            backup = copy.deepcopy(relay.storage)
            anna.write("new.bin", world.noise.randbytes(50_000))
            anna.write("new.txt", b"new")
            await anna.held_by(2)
    relay.storage = backup
    async with relay.awake():
        async with anna.awake():
            await anna.until(lambda: "has forgotten entries of member 1" in anna.warnings)
            await anna.held_by(2)
        async with ben.awake():
            await ben.until(lambda: ben.tree() == anna.tree())


async def test_two_relays_and_one_is_wiped(autojump_clock: trio.testing.MockClock) -> None:
    world = World(2)
    anna, ben = world.members
    one, two = RelayHost(world, 1), RelayHost(world, 2)
    async with one.awake(), two.awake():
        await world.introduce(one, two)
        async with anna.awake():
            anna.write("large.bin", world.noise.randbytes(300_000))
            await anna.held_by(3)
    one.storage = MemoryStorage()
    await one.storage.host(world.folder, anna.identity.device)
    async with one.awake(), two.awake(), ben.awake():
        # The one that was wiped knows nobody but its folder's sponsor; ben is served by the other.
        await ben.until(lambda: ben.tree() == anna.tree())
    async with one.awake():
        async with anna.awake():
            await anna.held_by(2)
            usage = await one.storage.usage(world.folder)
            assert usage.block_bytes >= 300_000
        ben.write("by ben.txt", b"ben")
        async with ben.awake():
            await ben.held_by(2)
            assert "by ben.txt" in ben.tree()


async def test_a_removed_member_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    world = World(2)
    anna, ben = world.members
    relay = RelayHost(world, 1)
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake(), ben.awake():
            await anna.until(lambda: anna.engine.in_sync(relay.identity.device))
            await ben.until(lambda: ben.engine.in_sync(relay.identity.device))
            folder, device = anna.engine.folder, ben.identity.device
            ops = removal_ops(
                folder.roster,
                folder.keys,
                device,
                position=folder.log.position(device),
                epoch_secret=b"e" * 32,
                seed=b"s" * 32,
                now_s=0,
            )
            folder.commit_roster(ops)
            anna.engine.roster_changed()
            await anna.held_by(2)
            with trio.fail_after(1_000):
                while device in relay.relay.connected:
                    await trio.sleep(1)
        refused = relay.relay.counters.refused_connections_total
        relay.policy = Policy(PolicyKind.OWNERS)
    async with relay.awake(), ben.awake():
        ben.write("after.txt", b"after the removal")
        await trio.sleep(100)
        assert relay.relay.counters.refused_connections_total
        assert refused >= 0
        assert device not in relay.relay.connected


async def test_an_invitation_through_a_relay(autojump_clock: trio.testing.MockClock) -> None:
    world = World(1)
    (anna,) = world.members
    relay = RelayHost(world, 1)
    secrets = {name: name.encode() * 8 for name in ("good", "late", "gone")}
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake():
            folder = anna.engine.folder
            now_s = world.clock.now_ns // 10**9
            for name, secret in secrets.items():
                op = invite_op(
                    folder.roster,
                    folder.keys,
                    Identity.from_seed(secret).device,
                    role=Role.EDITOR,
                    uses=1,
                    expires_s=now_s - 10 if name == "late" else now_s + 10_000,
                    seed=world.noise.randbytes(32),
                )
                folder.commit_roster([op])
            await anna.held_by(2)
        link = world.network.link(Identity.from_seed(b"x" * 32))
        invitation = _Invitation(world)
        async with trio.open_nursery() as nursery:
            await nursery.start(link.serve, lambda _: None, _nothing)
            new = Identity.from_seed(b"new device..............new.....")
            ask = (link, relay.address)
            entries = await ask_to_join(*ask, invitation(secrets["good"]), new, "new")  # type: ignore[arg-type]
            assert len(entries) >= 6
            other = Identity.from_seed(b"other device............other...")
            with pytest.raises(DialError) as used:
                await ask_to_join(*ask, invitation(secrets["good"]), other, "other")  # type: ignore[arg-type]
            assert used.value.code is CloseCode.INVITATION_USED
            with pytest.raises(DialError) as late:
                await ask_to_join(*ask, invitation(secrets["late"]), other, "other")  # type: ignore[arg-type]
            assert late.value.code is CloseCode.INVITATION_EXPIRED
            with pytest.raises((DialError, InvitationError)) as unknown:
                await ask_to_join(*ask, invitation(b"unknown." * 4), other, "other")  # type: ignore[arg-type]
            assert (
                "not known" in str(unknown.value)
                or "does not hold" in str(unknown.value)
                or ("the invitation is unknown" in str(unknown.value))
            )
            nursery.cancel_scope.cancel()
        counters = relay.relay.counters
        assert (counters.joins_admitted_total, counters.joins_expired_total) == (1, 1)
        assert counters.joins_refused_total >= 3


async def test_a_restored_relay_admits_nobody_before_a_member_came(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It cannot know whether it had admitted somebody since: a second entry would be a fork."""
    world = World(1)
    (anna,) = world.members
    relay = RelayHost(world, 1)
    invitation = _Invitation(world)(b"invited." * 4)
    key = Identity.from_seed(invitation.secret)
    link = world.network.link(key)
    first, second = (Identity.from_seed(bytes([n]) * 32) for n in (41, 42))
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake():
            folder = anna.engine.folder
            op = invite_op(
                folder.roster,
                folder.keys,
                key.device,
                role=Role.EDITOR,
                uses=2,
                expires_s=world.clock.now_ns // 10**9 + 10_000,
                seed=world.noise.randbytes(32),
            )
            folder.commit_roster([op])
            await anna.held_by(2)
            backup = copy.deepcopy(relay.storage)
            async with trio.open_nursery() as nursery:
                await nursery.start(link.serve, lambda _: None, _nothing)
                await ask_to_join(link, relay.address, invitation, first, "one")  # type: ignore[arg-type]
                await anna.until(lambda: folder.roster.role(first.device))
                nursery.cancel_scope.cancel()
    relay.storage, relay.is_copy = backup, True
    link = world.network.link(key)
    async with relay.awake(), trio.open_nursery() as nursery:
        await nursery.start(link.serve, lambda _: None, _nothing)
        with pytest.raises(InvitationError, match="waits for a member"):
            await ask_to_join(link, relay.address, invitation, second, "two")  # type: ignore[arg-type]
        async with anna.awake():
            await anna.held_by(2)
            hosted = relay.relay.folders[world.folder]
            while not hosted.own_log_known:
                await trio.sleep(1)
            await ask_to_join(link, relay.address, invitation, second, "two")  # type: ignore[arg-type]
            await anna.until(lambda: anna.engine.folder.roster.role(second.device))
            assert relay.relay.counters.forks_total == 0
        nursery.cancel_scope.cancel()


class _Invitation:
    """What `ask_to_join` needs of one."""

    def __init__(self, world: World) -> None:
        self.folder = world.folder

    def __call__(self, secret: bytes) -> _Invitation:
        self.secret = secret
        return self


async def _nothing(_: object) -> None:
    return


async def test_withholding_is_found_when_members_meet(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(3)
    anna, ben, cleo = world.members
    relay = HostileRelay(world, 1)
    async with relay.awake():
        await world.introduce(relay)
    hidden = ben.identity.device

    def without(vector: VersionVector) -> VersionVector:
        return VersionVector({device: seq for device, seq in vector.items() if device != hidden})

    def script(_: HostileRelay, message: Message) -> Words:
        if relay.peer != anna.identity.device:
            return [message]
        if isinstance(message, Entries):
            return []
        if isinstance(message, Have | Ack):
            heads = {device: head for device, head in message.heads.items() if device != hidden}
            return [replace(message, have=without(message.have), heads=heads)]
        return [message]

    relay.script = script
    async with relay.awake():
        async with ben.awake():
            ben.write("by ben.txt", b"ben")
            await ben.held_by(2)
        async with cleo.awake(), anna.awake(cleo.address):
            await anna.until(lambda: "by ben.txt" in anna.tree())
            await anna.until(lambda: "keeps them from this device" in anna.warnings)
            assert "told member 3" in anna.warnings
            assert "keeps them from this device" not in cleo.warnings


async def test_a_relay_without_the_roster_turns_members_away_for_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(2)
    anna, ben = world.members
    relay = RelayHost(world, 1)
    async with relay.awake():
        await world.introduce(relay)
        relay.storage = MemoryStorage()
        await relay.storage.host(world.folder, anna.identity.device)
    async with relay.awake(), ben.awake():
        await ben.until(lambda: "does not serve this folder" in ben.warnings)
        assert relay.relay.counters.unknown_folders_total
        async with anna.awake():
            await anna.held_by(2)
            ben.write("by ben.txt", b"ben")
            await ben.held_by(2)
            assert "does not serve this folder" not in ben.warnings


async def test_a_device_on_which_a_part_lives_knows_what_a_relay_holds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(2)
    anna, ben = world.members
    relay = RelayHost(world, 1)
    async with relay.awake():
        await world.introduce(relay)
        async with anna.awake():
            anna.fs.mkdir("big")
            anna.write("big/first.txt", b"first")
            await anna.held_by(2)
            async with ben.awake():
                await ben.until(lambda: "big/first.txt" in ben.tree())
                await ben.held_by(2)
                choose(ben.engine, "big", lives_here=False)
                await ben.until(lambda: "big/first.txt" not in ben.tree())
            anna.write("big/large.bin", world.noise.randbytes(3_000_000))
            await anna.held_by(2)
        async with ben.awake():
            await ben.until(lambda: ben.engine.folder.tree.resolve("big/large.bin"))
            await ben.held_by(2)
            assert "big/large.bin" not in ben.tree()
