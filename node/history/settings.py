"""A folder's history settings, in the home beside its configuration: `folders/<id>/history.json`.

    {"all_s": 2592000, "daily_s": 31536000, "share": 0.2, "size": 10000000000}

Without the file, or with a damaged one, the defaults hold: they keep at least what most people set.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Final

from node.history.policy import Policy
from node.home import write_durably

logger = logging.getLogger("shoal.history")

FILE: Final = "history.json"
_SIZE_MAX: Final = 4096


def load_policy(directory: Path) -> Policy:
    """The policy of the folder whose configuration lies in `directory`."""
    path = directory / FILE
    try:
        with path.open("rb") as handle:
            data = json.loads(handle.read(_SIZE_MAX))
        return Policy(
            all_s=int(data["all_s"]),
            daily_s=int(data["daily_s"]),
            share=float(data["share"]),
            size=int(data["size"]),
        )
    except FileNotFoundError:
        return Policy()
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        logger.warning(
            "%s cannot be read (%s); history keeps what it keeps by default", path, error
        )
        return Policy()


def save_policy(directory: Path, policy: Policy) -> None:
    """Store the policy durably. Raises OSError when the disk refuses."""
    write_durably(directory / FILE, json.dumps(asdict(policy)).encode())
