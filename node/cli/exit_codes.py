"""Every exit code of the CLI. Scripts rely on them: one may be added, none may change its meaning.

`docs/cli.md` repeats the table, and tests hold the two and the error classes together.
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
TIMED_OUT: Final = 4
DAMAGE_FOUND: Final = 5
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

EXIT_CODES: Final = {
    OK: "Done. For `up` and `join`: stopped cleanly by SIGINT or SIGTERM.",
    1: "A bug, or an error that fits nowhere else.",
    2: "What was asked cannot be done: wrong usage, or a value that makes no sense.",
    3: "No node is running with this home.",
    TIMED_OUT: "`wait`: the time is over and too few devices hold the current state.",
    DAMAGE_FOUND: "`verify`: a file is damaged and no peer could mend it. `relay check`: what the "
    "relay keeps was damaged.",
    10: "Another node broke the protocol, has the wrong key, or speaks another version.",
    11: "The invitation is unknown, expired, used or revoked.",
    12: "A node is already running with this home.",
    13: "The directory cannot be synced: it is a file, not writable, or in no or another folder.",
    14: "No member of the folder answered, so joining was not possible.",
    15: "The address to listen on is in use.",
    16: "The relay does not take the folder, or cannot be reached.",
    20: "Stored data is damaged, such as the identity file. It was left as it is.",
    21: "The passphrase of this device's key is wrong or missing, or no good as a new one.",
    30: "The machine refused: disk full, permission denied, no such address.",
    31: "The node runs but did not answer in time.",
    INTERRUPTED: "Interrupted.",
}
