"""Names that are ours: the `.shoal` directory at the folder's root, and what lies in it.

`.shoal` is never synced, at no level and in no spelling: file systems have their own ideas of when
two names are one, and a peer that got its `.SHOAL ` past us, or one with an invisible character in
it, would write into our own directory (the lesson of CVE-2014-9390 in git).
"""

from __future__ import annotations

import unicodedata
from typing import Final

OURS: Final = ".shoal"
ROOT_MARKER: Final = ".shoal/root"
TMP: Final = ".shoal/tmp"
STORE: Final = ".shoal/store"
HISTORY: Final = ".shoal/history"
DIRECTORIES: Final = (OURS, TMP, STORE, HISTORY)
IGNORE_FILE: Final = ".shoalignore"
NO_MERGE_FILE: Final = ".shoalnomerge"  # patterns, as in the former, of what is never merged

TEMPORARY_PREFIX: Final = ".shoal-tmp-"  # for what cannot lie in `.shoal/tmp`: never synced either


def is_ours(name: str) -> bool:
    """True for a name that is `.shoal` to some file system, or marks our temporary files."""
    if name == OURS:
        return True
    if len(name) < len(OURS):
        return False
    if name.isascii() and name[0] != "." and name[:5].lower() != "shoal":
        return False  # nearly every name; the rest is slow
    # HFS+ drops characters of category Cf; NTFS drops trailing dots and spaces, opens streams after
    # a colon, and gives long names short ones such as SHOAL~1.
    plain = "".join(c for c in name if unicodedata.category(c) != "Cf")
    plain = unicodedata.normalize("NFKC", plain).casefold().partition(":")[0].rstrip(". ")
    if plain.startswith(TEMPORARY_PREFIX) or plain == OURS:
        return True
    stem, tilde, number = plain.partition("~")
    return bool(tilde) and stem == OURS[1:] and number.isdecimal()


def is_ours_path(path: str) -> bool:
    """True when any component of the path is ours."""
    return any(map(is_ours, path.split("/")))
