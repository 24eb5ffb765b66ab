"""An ext4 file system of its own whose power can be cut, over and over: for root, on Linux.

`cut` is `EXT4_IOC_SHUTDOWN` without a flush of the journal: from that moment on nothing reaches the
image any more, as if the plug were pulled, and what follows fails. `restore` mounts it again, which
replays the journal as a start after a power cut does.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

IMAGE_SIZE = 768 * 1024 * 1024  # bytes, sparse
EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = struct.pack("I", 2)
DETACH = 2  # MNT_DETACH


class LoopDisk:
    """A mounted image. Whoever has files open below it closes them between `cut` and `restore`."""

    def __init__(self, image: Path, mount_point: Path) -> None:
        self._image = image
        self._devices = [_attach(image)]
        self.path = mount_point
        self.cuts = 0
        try:
            self._mount()
        except OSError:
            self.close()
            raise

    def cut(self) -> None:
        """Pull the plug."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(fd)
        self.cuts += 1

    def restore(self) -> None:
        """Start again."""
        self._unmount()
        self._mount()
        if not self._works():
            # A mount namespace that somebody made meanwhile has a copy of the old mount, so what
            # was mounted just now is the same, shut down still. Another device is another disk.
            self._unmount()
            with open(self._devices[-1], "rb") as device:
                os.fsync(device)
            self._devices.append(_attach(self._image))
            self._mount()

    def close(self) -> None:
        """Unmount for good; whoever still has files open there keeps nothing up."""
        libc.umount2(os.fsencode(self.path), DETACH)
        for device in self._devices:
            subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)

    def _works(self) -> bool:
        try:
            os.close(os.open(self.path, os.O_TMPFILE | os.O_RDWR))
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        return True

    def _mount(self) -> None:
        source, target = os.fsencode(self._devices[-1]), os.fsencode(self.path)
        if libc.mount(source, target, b"ext4", 0, None) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(self.path))

    def _unmount(self) -> None:
        if libc.umount2(os.fsencode(self.path), 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{os.strerror(number)}, open: {self._open()}")

    def _open(self) -> list[str]:
        """What is open below it, as far as /proc tells."""
        found = []
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                path = str(link.readlink())
                if path.startswith(f"{self.path}/"):
                    found.append(f"{link}: {path}")
        return found


def _attach(image: Path) -> str:
    return subprocess.run(
        ["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True
    ).stdout.strip()


libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def loop_disk(base: Path) -> Iterator[LoopDisk]:
    """A fresh file system, mounted at `base`/disk.

    Raises:
        OSError, CalledProcessError: loop mounts are not possible here.
    """
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise OSError("loop mounts need root on Linux")
    image, mount_point = base / "image", base / "disk"
    mount_point.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
    disk = LoopDisk(image, mount_point)
    try:
        yield disk
    finally:
        disk.close()
