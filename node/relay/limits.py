"""What a relay allows, and what it has counted. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from node.relay.storage import DROP_GRACE_S

GIB: Final = 1024**3
UNLIMITED: Final = 2**62  # bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """Each bounds what somebody else can make a relay do; sizes are bytes."""

    folder_size_max: int = UNLIMITED  # entries and blocks of one folder
    device_size_max: int = UNLIMITED  # what one device wrote and deposited in one folder
    folders_max: int = 1_000
    connections_max: int = 1_000
    connections_per_device_max: int = 4  # a device that lost its link dials again at once
    strangers_max: int = 32  # connected keys that no roster names; each has `stranger_s` to speak
    stranger_s: float = 10.0
    uploads_max: int = 16  # offers at once for which blocks may come; each holds a batch in memory
    upload_s: float = 120.0  # for one offer's blocks: a slow drip gives up its place
    reads_max: int = 16  # blocks at once that are read for somebody
    drop_grace_s: int = DROP_GRACE_S  # between a drop and the deletion
    rate_max: float = float("inf")  # bytes a second of blocks, each direction, all together


@dataclass(slots=True)
class Counters:
    """Since the start. Names are those of the metrics, with `shoal_relay_` before them."""

    connections: int = 0  # now
    connections_total: int = 0
    refused_connections_total: int = 0
    protocol_errors_total: int = 0
    entries_accepted_total: int = 0
    entries_refused_total: int = 0
    entries_over_quota_total: int = 0
    forks_total: int = 0
    blocks_stored_total: int = 0
    bytes_stored_total: int = 0
    blocks_served_total: int = 0
    bytes_served_total: int = 0
    blocks_missing_total: int = 0
    deposits_over_quota_total: int = 0
    deposits_refused_total: int = 0
    wrong_tokens_total: int = 0
    hosts_refused_total: int = 0
    unknown_folders_total: int = 0
    joins_admitted_total: int = 0
    joins_refused_total: int = 0
    joins_expired_total: int = 0
    drops_total: int = 0
    blocks_collected_total: int = 0
    blocks_scrubbed_total: int = 0
    blocks_lost_total: int = 0
    by_code: dict[str, int] = field(default_factory=dict)
