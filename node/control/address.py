"""Where a running node can be asked, as written into its home.

    control.sock      the Unix socket, 0600; elsewhere if the path would be too long for the kernel
    control.json      {"socket": path, "http": "127.0.0.1:port"}, written once both listen
    control.token     what a request over localhost must carry, 0600; made once and kept

After a crash the files may be stale: then nobody listens at the address, and `connect` says so.
The home's lock, not these files, decides which node owns the home.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crdt.errors import WorldError

SOCKET_PATH_MAX: Final = 100  # bytes; sun_path holds 104 with its NUL on macOS, 108 on Linux
FILE_SIZE_MAX: Final = 16 * 1024
TOKEN_SIZE: Final = 32  # bytes of randomness


@dataclass(frozen=True, slots=True)
class ControlAddress:
    """The content of control.json."""

    socket: str
    http: str

    def save(self, home: Path) -> None:
        """Write it; whoever reads sees all of it or nothing."""
        text = json.dumps({"socket": self.socket, "http": self.http})
        _write_private(home / "control.json", text)

    @classmethod
    def load(cls, home: Path) -> ControlAddress | None:
        """Read it; None if there is none or it is damaged."""
        try:
            with (home / "control.json").open("rb") as handle:
                data = json.loads(handle.read(FILE_SIZE_MAX))
        except (OSError, ValueError):
            return None
        match data:
            case {"socket": str(socket_path), "http": str(http)}:
                return cls(socket_path, http)
            case _:
                return None

    def remove(self, home: Path) -> None:
        """Take the files away again, at a clean end."""
        for path in (home / "control.json", Path(self.socket)):
            with contextlib.suppress(OSError):
                path.unlink()


def load_or_create_token(home: Path) -> str:
    """The home's token; made when there is none or it is damaged."""
    path = home / "control.token"
    with contextlib.suppress(OSError, ValueError), path.open("r", encoding="ascii") as handle:
        private = stat.S_IMODE(os.fstat(handle.fileno()).st_mode) & 0o077 == 0
        token = handle.read(FILE_SIZE_MAX).strip()
        if private and len(token) == 2 * TOKEN_SIZE:
            return token
    token = secrets.token_hex(TOKEN_SIZE)
    _write_private(path, token)
    return token


def bind_unix(home: Path) -> tuple[socket.socket, str]:
    """A socket bound in the home, or as near as its path length allows; not listening yet.

    Call it with the home's lock held: a socket that lies there is a dead node's.

    Raises:
        WorldError: no place would take it.
    """
    path = _socket_path(home)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                path.unlink()
        listener.bind(os.fspath(path))
        # Nobody can connect before `listen`, so there is no moment with the wrong mode.
        path.chmod(0o600)
    except OSError as error:
        listener.close()
        raise WorldError(
            f"cannot make the control socket {path}: {error.strerror}. Nothing was changed. "
            "Choose a home on a local disk with --home."
        ) from error
    return listener, os.fspath(path)


def _socket_path(home: Path) -> Path:
    path = home / "control.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
        return path
    # Short, and never the same for two homes. The directory must be ours alone.
    name = hashlib.sha256(os.fsencode(home)).hexdigest()[:16] + ".sock"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    places = [Path(runtime, "shoal")] if runtime else []
    for directory in [*places, Path(tempfile.gettempdir(), f"shoal-{os.getuid()}")]:
        candidate = directory / name
        if len(os.fsencode(candidate)) <= SOCKET_PATH_MAX and _make_private(directory):
            return candidate
    raise WorldError(
        f"the path of the home {home} is too long for a control socket, and there is no other "
        f"place for one. Nothing was changed. Choose a shorter --home."
    )


def _make_private(directory: Path) -> bool:
    """Make `directory`, or see that it is nobody else's."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError:
        return False
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    return ours and stat.S_IMODE(status.st_mode) & 0o077 == 0


def _write_private(path: Path, text: str) -> None:
    """Replace a small file, mode 0600. Not fsynced: it means nothing after a restart."""
    temporary = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(text)
    temporary.replace(path)
