"""The index's tables, and how an older index becomes the present one.

`PRAGMA user_version` holds the schema's number. Migration `n` turns version `n` into `n + 1`, in
one transaction; a migration that has been released never changes. A newer index than this program
knows is refused, untouched. docs/storage.md explains each table.
"""

from __future__ import annotations

from typing import Final

from node.blocks.locate import BLOCKS_SCHEMA
from node.index.view import (
    TREE_DERIVED_SCHEMA,
    TREE_HISTORY_SCHEMA,
    TREE_MARKED_SCHEMA,
    TREE_SCHEMA,
)

_NODE_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;

CREATE TABLE log (
    arrival INTEGER PRIMARY KEY,      -- order of acceptance here: a causal order
    device BLOB NOT NULL,
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL,
    lamport INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    entry BLOB NOT NULL,
    UNIQUE (device, seq)
);
CREATE INDEX log_roster ON log (arrival) WHERE kind = 2;

CREATE TABLE disk (
    item BLOB PRIMARY KEY,
    parent BLOB NOT NULL,
    name TEXT NOT NULL,
    kind INTEGER NOT NULL,
    version BLOB NOT NULL,            -- the content version on the disk, canonical wire
    digest BLOB NOT NULL,             -- Content.digest of what is on the disk
    revision INTEGER NOT NULL,        -- the view row's revision when last agreed
    shown_name TEXT NOT NULL,         -- the view's name; differs from `name` for an alias
    inode INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    executable INTEGER NOT NULL,
    profile INTEGER NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX disk_place ON disk (parent, name);
CREATE INDEX disk_inode ON disk (inode);
CREATE INDEX disk_digest ON disk (digest) WHERE kind = 1 AND size > 0;

CREATE TABLE intents (
    item BLOB PRIMARY KEY,            -- about to be put somewhere: a crash may find it done
    parent BLOB NOT NULL,
    name TEXT NOT NULL,
    version BLOB NOT NULL,
    digest BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX intents_place ON intents (parent, name);

CREATE TABLE peers (
    device BLOB PRIMARY KEY,
    have BLOB NOT NULL,
    complete BLOB NOT NULL,
    host TEXT,
    port INTEGER,
    seen_ns INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE displaced (
    id INTEGER PRIMARY KEY,
    item BLOB NOT NULL,
    path TEXT NOT NULL,
    version BLOB NOT NULL,
    digest BLOB NOT NULL,
    size INTEGER NOT NULL,
    time_ns INTEGER NOT NULL,
    file TEXT NOT NULL UNIQUE         -- where the bytes lie, below the folder's root
);
"""

_HISTORY_SCHEMA: Final = """
ALTER TABLE log ADD COLUMN time_ms INTEGER NOT NULL DEFAULT 0;  -- when written, by its author

CREATE TABLE stored (                 -- the sealed blocks in `.shoal/store`
    block BLOB PRIMARY KEY,
    length INTEGER NOT NULL,          -- of the plaintext
    size INTEGER NOT NULL,            -- on the disk
    since_s INTEGER                   -- as in past_slots
) WITHOUT ROWID;

CREATE TABLE kept (
    id INTEGER PRIMARY KEY,
    item BLOB NOT NULL,
    path TEXT NOT NULL,
    version BLOB NOT NULL,
    digest BLOB NOT NULL,
    size INTEGER NOT NULL,
    time_ns INTEGER NOT NULL,
    file TEXT UNIQUE,                 -- where the bytes lie as one file; NULL once they are blocks
    content BLOB,                     -- what it was, canonical wire, once they are blocks
    since_s INTEGER
);
INSERT INTO kept (id, item, path, version, digest, size, time_ns, file)
    SELECT id, item, path, version, digest, size, time_ns, file FROM displaced;
DROP TABLE displaced;
ALTER TABLE kept RENAME TO displaced;
CREATE INDEX displaced_item ON displaced (item);
CREATE INDEX displaced_digest ON displaced (digest);
"""

# Where what the intended content displaces goes, by which a start knows that it had come to pass.
_INTENTS_SAY_WHAT_THEY_DISPLACE: Final = "ALTER TABLE intents ADD COLUMN history TEXT"

_AFTERLOOKS: Final = """
CREATE TABLE afterlooks (
    file TEXT PRIMARY KEY,            -- displaced: somebody may have been writing to it still
    path TEXT NOT NULL,               -- where it lay
    digest BLOB NOT NULL,             -- what it should hold
    profile INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,        -- when its content was compared, 0 before
    looks INTEGER NOT NULL,
    due_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX afterlooks_due ON afterlooks (due_ns);
"""

_DAMAGED: Final = """
CREATE TABLE damaged (
    item BLOB PRIMARY KEY,            -- its file rotted; means nothing unless disk.digest is
    digest BLOB NOT NULL              -- this one, that of the rotten bytes
) WITHOUT ROWID;
"""

_FOLDED_NAMES: Final = """
ALTER TABLE disk ADD COLUMN fold TEXT;  -- what this disk takes `name` for; NULL where only itself
CREATE INDEX disk_fold ON disk (parent, fold) WHERE fold IS NOT NULL;
"""

_WITHOUT_EFFECT: Final = """
CREATE TABLE without_effect (         -- tree entries in the log that the tree does not show
    device BLOB NOT NULL,
    seq INTEGER NOT NULL,
    why INTEGER NOT NULL,             -- node.index.log.Why
    PRIMARY KEY (device, seq)
) WITHOUT ROWID;
"""

_RELAYS: Final = """
CREATE TABLE relays (
    device BLOB PRIMARY KEY,          -- a relay of this folder
    generation BLOB NOT NULL,         -- its place when it last confirmed
    number INTEGER NOT NULL,
    mark BLOB NOT NULL,
    revision INTEGER NOT NULL         -- of the tree: every block of its rows up to here lies there
) WITHOUT ROWID;
CREATE INDEX tree_top ON tree (top, item) WHERE kind = 1 AND size > 4096;
"""

_UNNEEDED: Final = """
CREATE TABLE unneeded (               -- blocks at a relay that nothing here needs any more
    device BLOB NOT NULL,             -- the relay
    block BLOB NOT NULL,
    since_s INTEGER NOT NULL,         -- first seen so, on history's own clock
    PRIMARY KEY (device, block)
) WITHOUT ROWID;
"""

_UNSELECTED: Final = """
CREATE TABLE unselected (             -- directories that do not live on this device
    item BLOB PRIMARY KEY
) WITHOUT ROWID;
"""

MIGRATIONS: Final[tuple[str, ...]] = (
    _NODE_SCHEMA + TREE_SCHEMA + BLOCKS_SCHEMA,
    _HISTORY_SCHEMA + TREE_HISTORY_SCHEMA,
    _INTENTS_SAY_WHAT_THEY_DISPLACE,
    _AFTERLOOKS,
    _DAMAGED,
    _FOLDED_NAMES,
    _WITHOUT_EFFECT + TREE_DERIVED_SCHEMA,
    _RELAYS,
    TREE_MARKED_SCHEMA,
    _UNNEEDED,
    _UNSELECTED,
)
SCHEMA_VERSION: Final = len(MIGRATIONS)
