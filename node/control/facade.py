"""What the control API can ask of a running node, and the answers' shapes.

`node.app` implements `NodeFacade`; `node.control.api` serves it; `node.control.client` reads the
answers back into the same classes. Everything here is a value: plain text, numbers and tuples.
A field that is None is left out of the JSON.

Every `directory` is absolute; the node finds the folder that contains it. Whatever cannot be done
is raised as a `ShoalError`, whose text and exit code reach the person who asked.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from node.control.conflict_shapes import ConflictInfo, ConflictTexts

if TYPE_CHECKING:  # the command line asks with these shapes, and shall start at once
    import trio

USES_DEFAULT: Final = 1  # joins that one invitation allows
USES_MAX: Final = 1_000
EXPIRES_DEFAULT_S: Final = 24 * 3600.0  # an invitation works for a day
EXPIRES_MIN_S: Final = 60.0  # below, nobody could type it
EXPIRES_MAX_S: Final = 366 * 24 * 3600.0
DEVICES_MAX: Final = 10_000  # beyond any roster
TIMEOUT_MAX_S: Final = 7 * 24 * 3600.0  # of `wait`
DEEDS_DEFAULT: Final = 100  # of `shoal log`
DEEDS_MAX: Final = 10_000
LINES_MAX: Final = 10_000  # of the log


class FolderState(enum.StrEnum):
    """What a folder is doing. `STOPPED` comes with a reason."""

    SCANNING = "scanning"
    SYNCING = "syncing"
    IN_SYNC = "in sync"
    PAUSED = "paused"
    STOPPED = "stopped"


class Role(enum.StrEnum):
    """What a member may do, as people write it."""

    OWNER = "owner"
    EDITOR = "editor"
    READER = "reader"
    RELAY = "relay"


class Phase(enum.StrEnum):
    """Which long work a `Progress` speaks of."""

    SCANNING = "scanning"
    RECEIVING = "receiving"
    SENDING = "sending"
    VERIFYING = "verifying"


@dataclass(frozen=True, slots=True)
class Needs:
    """What this disk still lacks."""

    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far some long work is. A total of 0 means: not known yet."""

    phase: Phase
    done_bytes: int
    total_bytes: int
    done_files: int
    total_files: int


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """Another device of the folder. `in_sync`: its disk holds our current state."""

    device: str
    name: str
    connected: bool
    in_sync: bool


@dataclass(frozen=True, slots=True)
class FolderWarning:
    """Something that needs a look; sync goes on. `path` is relative to the folder, or empty."""

    path: str
    message: str


@dataclass(frozen=True, slots=True)
class LocalInfo:
    """What was changed on this disk and stays on it, since the device may only read. `action` is
    `created`, `edited`, `moved` (from `was`) or `deleted`.
    """

    path: str
    action: str
    was: str | None = None


@dataclass(frozen=True, slots=True)
class FolderStatus:
    """One folder, as `shoal status` shows it."""

    id: str
    path: str
    state: FolderState
    files: int
    bytes: int
    needs: Needs
    conflicts: int
    peers: tuple[PeerStatus, ...] = ()
    warnings: tuple[FolderWarning, ...] = ()
    progress: Progress | None = None
    reason: str | None = None
    role: Role | None = None  # of this device
    local: tuple[LocalInfo, ...] = ()
    unselected: tuple[str, ...] = ()  # directories that do not live on this device

    def __post_init__(self) -> None:
        if (self.state is FolderState.STOPPED) != (self.reason is not None):
            raise ValueError("a stopped folder has a reason, and no other has one")


@dataclass(frozen=True, slots=True)
class Status:
    """The node as a whole. `listening` is HOST:PORT."""

    device: str
    name: str
    listening: str | None = None
    folders: tuple[FolderStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A member of the roster.

    `person` is the name's part before a slash; `last_seen` is ISO 8601, UTC, now for who is
    connected; `behind` counts the entries that its disk does not show in whole yet, None when it
    never said.
    """

    device: str
    name: str
    role: Role
    this_device: bool
    connected: bool
    person: str = ""
    last_seen: str | None = None
    behind: int | None = None
    may_invite: bool = False


@dataclass(frozen=True, slots=True)
class InvitationInfo:
    """An invitation. `state` is `open`, `used up`, `expired` or `revoked`; `joined` are the names
    of the devices that came by it; `expires` is ISO 8601, UTC.
    """

    id: str
    role: Role
    uses: int
    left: int
    expires: str
    state: str
    issued_by: str
    joined: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WaitResult:
    """`devices`: how many devices, this one included, hold the current state."""

    reached: bool
    devices: int


@dataclass(frozen=True, slots=True)
class Damage:
    """A file whose content is not what was agreed, and whether a peer could mend it."""

    path: str
    message: str
    repaired: bool


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What reading everything found. `damaged` are all paths that were, mended or not; `repaired`
    those of them that are whole again.
    """

    checked: int  # files
    bytes: int
    damaged: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    details: tuple[Damage, ...] = ()  # one for each of `damaged`


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version of a path. `version` is what `restore` takes; `device` and `name` are its
    author's; `available` says that its bytes are to be had now, here or from a connected device.
    A deletion's size is that of what was deleted.
    """

    version: str
    time: str  # ISO 8601, UTC, by the author's clock
    device: str
    name: str
    size: int
    deleted: bool
    available: bool
    current: bool


@dataclass(frozen=True, slots=True)
class HistoryResult:
    """The versions of a path, the newest first. `path` is relative to the folder."""

    path: str
    versions: tuple[VersionInfo, ...]


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What was restored: `paths` are relative to the folder. `complete` is False while some of it
    is still on its way to the disk.
    """

    paths: tuple[str, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class TrashItem:
    """Something deleted: where it lay, when and by whom it was deleted. `kind` is `file`,
    `directory` or `symlink`.
    """

    path: str
    time: str
    device: str
    name: str
    size: int
    kind: str


@dataclass(frozen=True, slots=True)
class KeepResult:
    """How much history a folder keeps on this device, and how much there is: see `shoal keep`."""

    all_s: int
    daily_s: int
    share: float
    size: int
    versions: int
    used: int  # bytes
    limit: int  # bytes


class Keep(enum.StrEnum):
    """What ends a conflict: which version stays."""

    MINE = "mine"
    THEIRS = "theirs"
    BOTH = "both"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class ResolveResult:
    """What is left of a conflict. `complete` is False while some of it is not on the disk yet."""

    paths: tuple[str, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class DeedInfo:
    """Who did what. `action` is `created`, `edited`, `moved` (from `was`), `deleted`, `conflict`,
    or about people: `founded`, `invited`, `revoked`, `joined`, `added`, `role`, `removed`; then
    `about` says whom it is about. `time` is ISO 8601, UTC, by the author's clock.
    """

    time: str
    device: str
    name: str
    action: str
    path: str
    was: str | None = None
    about: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened; `folder` is an id or empty.

    status      asking for the status again is worth it
    log         a line of the node's log
    warning     something needs a look: `text` says what, `path` where, if anywhere
    deed        somebody did something: `deed` says who and what
    """

    kind: str
    text: str = ""
    folder: str = ""
    path: str = ""
    deed: DeedInfo | None = None


@dataclass(frozen=True, slots=True)
class SelectionInfo:
    """What of a folder does not live on this device. `waiting`: paths whose local copy stays until
    another device is known to keep it.
    """

    unselected: tuple[str, ...]
    waiting: tuple[str, ...] = ()


class PeopleFacade(Protocol):
    """The part of a running node that knows people; see `NodeFacade`."""

    async def devices(self, directory: str) -> tuple[DeviceInfo, ...]:
        """The folder's roster, this device included."""
        ...

    async def remove(self, directory: str, device: str) -> DeviceInfo:
        """Remove a device, given by name or id, from the folder for good."""
        ...

    async def set_role(
        self, directory: str, device: str, role: Role, may_invite: bool | None
    ) -> DeviceInfo:
        """Give a device another role.

        `may_invite` None leaves that as it is, and takes it away where the role changes.
        """
        ...

    async def revert(self, path: str) -> tuple[LocalInfo, ...]:
        """Throw away what was changed at `path` and below it on a device that may only read."""
        ...

    async def select(self, path: str, lives_here: bool | None) -> SelectionInfo:
        """Let a directory live on this device, or not; None only asks. Returns what is left out."""
        ...

    async def say_code(self, directory: str, role: Role) -> str:
        """An invitation as three words to say, open for ten minutes and one guess."""
        ...

    async def recovery(self, directory: str) -> str:
        """A standing owner invitation, as 24 words to keep on paper."""
        ...

    async def deeds(self, path: str, limit: int) -> tuple[DeedInfo, ...]:
        """Who did what at `path` and below it, the newest first."""
        ...

    async def hook(self, command: str | None) -> str:
        """Set the command that is run for what others do, unless None; returns it."""
        ...

    async def invitations(self, directory: str) -> tuple[InvitationInfo, ...]:
        """Every invitation that there was, the newest last."""
        ...

    async def revoke(self, directory: str, invitation: str) -> InvitationInfo:
        """Take an invitation back, given by its id or its text."""
        ...


class NodeFacade(PeopleFacade, Protocol):
    """A running node. Called on the trio loop; each call may run beside the others."""

    async def status(self) -> Status:
        """What `shoal status` shows."""
        ...

    async def invite(self, directory: str, *, role: Role, uses: int, expires_s: float) -> str:
        """Write an invitation into the roster; returns its text once that is durable."""
        ...

    async def add_relay(self, directory: str, *, address: str, token: str) -> str:
        """Let the relay at `address` (HOST:PORT) keep the folder; returns its device."""
        ...

    async def wait(self, directory: str, *, devices: int, timeout_s: float) -> WaitResult:
        """Return when `devices` devices hold the current state, or when the time is over.

        Cancelled when whoever asked goes away.
        """
        ...

    async def verify(self, directory: str) -> VerifyResult:
        """Read and check everything; mend from peers. Cancelled when whoever asked goes away."""
        ...

    async def history(self, path: str) -> HistoryResult:
        """The versions of a file, deleted or not."""
        ...

    async def restore(
        self, path: str, *, version: str | None, at_ms: int | None, to: str | None
    ) -> RestoreResult:
        """Bring a version back, or a directory as of a time (milliseconds since 1970 UTC).

        Cancelled when whoever asked goes away; what was written by then stays.
        """
        ...

    async def trash(self, directory: str) -> tuple[TrashItem, ...]:
        """What was deleted in a directory, the newest first."""
        ...

    async def keep(
        self,
        directory: str,
        *,
        all_s: int | None,
        daily_s: int | None,
        share: float | None,
        size: int | None,
    ) -> KeepResult:
        """Set what is not None of how much history the folder keeps here; says what holds now."""
        ...

    async def conflicts(self, directory: str) -> tuple[ConflictInfo, ...]:
        """The files in conflict in a directory, by path."""
        ...

    async def conflict(self, path: str) -> ConflictTexts:
        """One conflict, with the texts of its versions. Cancelled when whoever asked goes away."""
        ...

    async def resolve(self, path: str, *, keep: Keep, file: str | None) -> ResolveResult:
        """End a conflict on all devices; `file` is for `Keep.FILE` alone.

        Cancelled when whoever asked goes away; what was written by then stays.
        """
        ...

    async def pause(self, directory: str) -> None:
        """Stop scanning, writing and exchanging until `resume`; remembered over restarts."""
        ...

    async def resume(self, directory: str) -> None:
        """Undo `pause`."""
        ...

    async def logs(self, lines: int) -> tuple[str, ...]:
        """The newest `lines` lines of the node's log, oldest first."""
        ...

    def events(self) -> trio.MemoryReceiveChannel[Event]:
        """A subscription, see `node.control.events.EventBus`; whoever asked closes it."""
        ...

    async def shutdown(self) -> None:
        """Start to stop the node cleanly; returns at once."""
        ...
