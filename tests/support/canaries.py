"""A thousand names and contents that are nowhere by chance, and a search for all of them at once.

A canary is text, so that `grep` takes it for a pattern, and random, so that packing cannot hide it.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

COUNT = 1_000
INLINE = 8  # of nine files so many travel within their entry; the ninth has blocks
BLOCK_SIZE = 20_000


@dataclass
class Canaries:
    """Files with unlikely names and contents."""

    names: list[str] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)

    @classmethod
    def sow(cls, directory: Path, count: int = COUNT) -> Canaries:
        """Write `count` files below `directory`, in unlikely directories."""
        made, below = cls(), directory
        for number in range(count):
            if number % 50 == 0:
                made.names.append(f"dir-{secrets.token_hex(12)}")
                below = directory / made.names[-1]
                below.mkdir(parents=True)
            name, content = f"name-{secrets.token_hex(12)}", f"content-{secrets.token_hex(16)}"
            size = 0 if number % (INLINE + 1) else BLOCK_SIZE
            (below / name).write_bytes(content.encode() + os.urandom(size))
            made.names.append(name)
            made.contents.append(content)
        return made

    def found_in(self, paths: Iterable[Path], scratch: Path) -> set[str]:
        """Those that are in these files, or in names of files below."""
        paths = list(paths)
        patterns = scratch / "canaries"
        patterns.write_text("\n".join([*self.names, *self.contents]))
        grep = ["grep", "--fixed-strings", "--text", "--only-matching", "--no-filename"]
        done = subprocess.run(
            [*grep, "--recursive", "--file", patterns, *paths],
            capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        assert done.returncode in (0, 1), done.stderr.decode(errors="replace")
        shown = "\n".join(str(one) for path in paths for one in (path, *path.rglob("*")))
        return {*done.stdout.decode().split(), *(n for n in self.names if n in shown)}


def dump_memory(pid: int, file: Path) -> int:
    """Write all of a process's readable memory to `file`: what a core dump holds, and more.

    The process stands still meanwhile. Only for processes of the test's own. Returns the size.
    """
    size = 0
    os.kill(pid, signal.SIGSTOP)
    try:
        with (
            Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory,
            file.open("wb") as out,
        ):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r\S* \S+ \S+ \S+\s*(.*)", line)
                if match is None or match[3] in ("[vvar]", "[vsyscall]", "[vvar_vclock]"):
                    continue
                at, end = int(match[1], 16), int(match[2], 16)
                memory.seek(at)
                while at < end:
                    try:
                        data = memory.read(min(end - at, 2**20))
                    except OSError:
                        break  # beyond the end of a mapped file
                    if not data:
                        break
                    size += out.write(data)
                    at += len(data)
    finally:
        os.kill(pid, signal.SIGCONT)
    return size
