"""What every FileSystem must do: disk (both ways of walking), memory, and faulty without faults."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.files.disk import DiskFileSystem
from node.files.faulty import FaultyFileSystem
from node.files.memory import MemoryFileSystem
from node.files.port import (
    FileSystem,
    InvalidPathError,
    NotRegularFileError,
    StatKind,
    join,
    split_parent,
    split_path,
)

IMPLEMENTATIONS = ["disk", "disk, step by step", "memory", "faulty over disk", "faulty over memory"]


@pytest.fixture(params=IMPLEMENTATIONS)
def fs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FileSystem]:
    made: dict[str, Callable[[], FileSystem]] = {
        "disk": lambda: DiskFileSystem(tmp_path),
        "disk, step by step": lambda: DiskFileSystem(tmp_path, kernel_resolves=False),
        "memory": MemoryFileSystem,
        "faulty over disk": lambda: FaultyFileSystem(DiskFileSystem(tmp_path)),
        "faulty over memory": lambda: FaultyFileSystem(MemoryFileSystem()),
    }
    fs = made[request.param]()
    yield fs
    fs.close()


@contextlib.contextmanager
def fails_with(number: int) -> Iterator[None]:
    with pytest.raises(OSError, check=lambda error: error.errno == number):
        yield


def write(fs: FileSystem, path: str, data: bytes = b"data", *, executable: bool = False) -> None:
    with fs.create(path, executable=executable) as file:
        file.write_at(0, data)


def read(fs: FileSystem, path: str) -> bytes:
    with fs.open_read(path) as file:
        return file.read_at(0, file.stat().size + 1)


def names(fs: FileSystem, path: str = "") -> set[str]:
    return {entry.name for entry in fs.scandir(path)}


def test_an_empty_root(fs: FileSystem) -> None:
    assert fs.scandir("") == []
    assert fs.lstat("").kind is StatKind.DIRECTORY
    assert (fs.lstat("").device, fs.lstat("").inode) == fs.identity()
    assert fs.is_attached()
    assert fs.free_bytes() > 0


def test_a_listing_shows_what_lstat_shows(fs: FileSystem) -> None:
    fs.mkdir("d")
    write(fs, "d/plain", b"12345")
    write(fs, "d/run", b"", executable=True)
    fs.symlink("plain", "d/link")
    fs.mkdir("d/sub")
    found = {entry.name: entry.stat for entry in fs.scandir("d")}
    assert found == {name: fs.lstat(f"d/{name}") for name in ("plain", "run", "link", "sub")}
    assert [found[n].kind for n in ("plain", "link", "sub")] == [
        StatKind.FILE,
        StatKind.SYMLINK,
        StatKind.DIRECTORY,
    ]
    assert (found["plain"].size, found["plain"].executable, found["plain"].links) == (5, False, 1)
    assert found["run"].executable
    assert not found["sub"].executable
    assert found["link"].size == len("plain")
    assert len({s.inode for s in found.values()}) == 4


def test_names_come_back_exactly(fs: FileSystem) -> None:
    odd = {
        "a b",
        "ünïcödé",
        "e\u0301",
        "\u00e9",
        "\udcff\udcfe",
        "new\nline",
        "\\",
        "x" * 255,
        "💡",
    }
    for name in odd:
        write(fs, name)
    assert names(fs) == odd
    for name in odd:
        fs.unlink(name)
    assert names(fs) == set()


def test_what_does_not_exist(fs: FileSystem) -> None:
    for act in (
        lambda: fs.scandir("no"),
        lambda: fs.lstat("no"),
        lambda: fs.lstat("no/deeper"),
        lambda: fs.open_read("no"),
        lambda: fs.open_write("no"),
        lambda: fs.create("no/new"),
        lambda: fs.mkdir("no/new"),
        lambda: fs.rmdir("no"),
        lambda: fs.unlink("no"),
        lambda: fs.symlink("t", "no/link"),
        lambda: fs.readlink("no"),
        lambda: fs.rename("no", "other"),
        lambda: fs.exchange("no", "other"),
        lambda: fs.set_metadata("no", mtime_ns=1),
        lambda: fs.fsync_directory("no"),
    ):
        with pytest.raises(FileNotFoundError):
            act()


def test_a_file_is_no_directory(fs: FileSystem) -> None:
    write(fs, "f")
    for act in (
        lambda: fs.scandir("f"),
        lambda: fs.lstat("f/x"),
        lambda: fs.create("f/x"),
        lambda: fs.rename("f", "f/x"),
        lambda: fs.rmdir("f"),
        lambda: fs.fsync_directory("f"),
    ):
        with pytest.raises(NotADirectoryError):
            act()


def test_reading_and_writing_at_offsets(fs: FileSystem) -> None:
    with fs.create("f") as file:
        assert file.stat().size == 0
        file.write_at(0, b"hello world")
        file.write_at(6, b"there, you")
        assert file.read_at(0, 100) == b"hello there, you"
        assert file.read_at(6, 5) == b"there"
        assert file.read_at(100, 5) == b""
        file.write_at(50, b"")
        assert file.stat().size == 16
        file.write_at(20, b"!")
        assert file.read_at(14, 7) == b"ou\0\0\0\0!"
        file.truncate(5)
        assert file.read_at(0, 100) == b"hello"
        file.truncate(8)
        assert file.read_at(0, 100) == b"hello\0\0\0"
        file.fsync()
    fs.fsync_directory("")
    fs.sync()
    with fs.open_write("f") as file:  # as it was, for going on with a download
        assert file.read_at(0, 100) == b"hello\0\0\0"
        file.write_at(5, b"!")
    assert read(fs, "f") == b"hello!\0\0"
    with fails_with(errno.EBADF):
        file.read_at(0, 1)
    file.close()


def test_an_open_file_outlives_its_name(fs: FileSystem) -> None:
    write(fs, "f", b"old")
    with fs.open_read("f") as file:
        inode = file.stat().inode
        write(fs, "g", b"newer")
        fs.exchange("f", "g")
        fs.unlink("g")
        assert file.read_at(0, 10) == b"old"
        assert (file.stat().inode, file.stat().links) == (inode, 0)
    assert read(fs, "f") == b"newer"


def test_only_regular_files_are_opened(fs: FileSystem) -> None:
    write(fs, "f")
    fs.symlink("f", "link")
    fs.mkdir("d")
    for path, number in (("link", errno.ELOOP), ("d", errno.EISDIR)):
        for act in (
            lambda path=path: fs.open_read(path),
            lambda path=path: fs.open_write(path),
            lambda path=path: fs.set_metadata(path, mtime_ns=1),
        ):
            with pytest.raises(NotRegularFileError) as caught:
                act()
            assert caught.value.errno == number


def test_nothing_is_created_over_anything(fs: FileSystem) -> None:
    write(fs, "f", b"mine")
    fs.mkdir("d")
    fs.symlink("dangling", "link")
    for path in ("f", "d", "link"):
        for act in (fs.create, fs.mkdir, lambda path: fs.symlink("x", path)):
            with pytest.raises(FileExistsError):
                act(path)
        write(fs, "new")
        with pytest.raises(FileExistsError):
            fs.rename("new", path)
        fs.unlink("new")
    with pytest.raises(FileExistsError):
        fs.rename("f", "f")
    fs.mkdir("other")
    with pytest.raises(FileExistsError):
        fs.rename("other", "d")  # plain rename would replace an empty directory
    assert read(fs, "f") == b"mine"


def test_directories(fs: FileSystem) -> None:
    fs.mkdir("a")
    fs.mkdir("a/b")
    write(fs, "a/b/f")
    for path in ("a", "a/b"):
        with fails_with(errno.ENOTEMPTY):
            fs.rmdir(path)
    with pytest.raises((IsADirectoryError, PermissionError)):
        fs.unlink("a")
    with fails_with(errno.EINVAL):
        fs.rename("a", "a/b/c")
    with fails_with(errno.EINVAL):
        fs.exchange("a", "a/b")
    with fails_with(errno.EINVAL):
        fs.exchange("a/b", "a")
    inode = fs.lstat("a/b/f").inode
    fs.rename("a/b", "b")
    assert fs.lstat("b/f").inode == inode
    assert names(fs, "a") == set()
    fs.rmdir("a")
    assert names(fs) == {"b"}


def test_symlinks_are_kept_as_they_are(fs: FileSystem) -> None:
    for i, target in enumerate(["../..", "/etc/passwd", "no such thing", "\udcff", "x" * 3000]):
        fs.symlink(target, f"l{i}")
        assert fs.readlink(f"l{i}") == target
        fs.rename(f"l{i}", f"m{i}")
        assert fs.readlink(f"m{i}") == target
        fs.unlink(f"m{i}")
    write(fs, "f")
    with fails_with(errno.EINVAL):
        fs.readlink("f")


def test_exchange_swaps_anything_with_anything(fs: FileSystem) -> None:
    write(fs, "f", b"file")
    fs.mkdir("d")
    write(fs, "d/inside", b"inside")
    fs.symlink("t", "l")
    fs.exchange("f", "d")
    assert read(fs, "d") == b"file"
    assert read(fs, "f/inside") == b"inside"
    fs.exchange("l", "f/inside")
    assert read(fs, "l") == b"inside"
    assert fs.readlink("f/inside") == "t"
    with pytest.raises(FileNotFoundError):
        fs.exchange("l", "no")
    assert read(fs, "l") == b"inside"


def test_metadata(fs: FileSystem) -> None:
    write(fs, "f", b"x")
    before = fs.lstat("f")
    fs.set_metadata("f", mtime_ns=123_456_789_000_000_000)
    after = fs.lstat("f")
    assert after.mtime_ns == 123_456_789_000_000_000
    assert after.ctime_ns >= before.ctime_ns
    assert not after.executable
    fs.set_metadata("f", executable=True)
    assert fs.lstat("f").executable
    assert fs.lstat("f").mtime_ns == 123_456_789_000_000_000
    with fs.open_write("f") as file:
        file.set_metadata(mtime_ns=5_000_000_000, executable=False)
        assert file.stat() == fs.lstat("f")
    assert (fs.lstat("f").mtime_ns, fs.lstat("f").executable) == (5_000_000_000, False)
    with fs.open_write("f") as file:
        file.set_metadata(permissions=0o600)
        assert file.stat().permissions == 0o600
        file.set_metadata(executable=True)
        assert file.stat().permissions == 0o700
        file.set_metadata(permissions=0o644, executable=True)
        assert (file.stat().permissions, file.stat().executable) == (0o755, True)
    fs.mkdir("private", private=True)
    assert fs.lstat("private").permissions == 0o700
    fs.rename("f", "g")
    assert fs.lstat("g").mtime_ns == 5_000_000_000


ESCAPES = [
    "..",
    "../x",
    "a/../../x",
    "a/..",
    "/etc/passwd",
    "/",
    ".",
    "./x",
    "a//b",
    "a/",
    "a/./b",
    "a\0b",
    "\ud800",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_leads_out(fs: FileSystem, path: str) -> None:
    fs.mkdir("a")
    write(fs, "f")
    for act in (
        fs.scandir,
        fs.lstat,
        fs.open_read,
        fs.create,
        fs.open_write,
        fs.mkdir,
        fs.rmdir,
        fs.unlink,
        fs.readlink,
        fs.fsync_directory,
        lambda path: fs.symlink("t", path),
        lambda path: fs.rename("f", path),
        lambda path: fs.rename(path, "g"),
        lambda path: fs.exchange("f", path),
        lambda path: fs.exchange(path, "f"),
        lambda path: fs.set_metadata(path, mtime_ns=1),
    ):
        with pytest.raises(InvalidPathError):
            act(path)
    assert names(fs) == {"a", "f"}


def test_the_root_itself_is_not_touched(fs: FileSystem) -> None:
    for act in (
        fs.create,
        fs.mkdir,
        fs.rmdir,
        fs.unlink,
        fs.open_read,
        lambda p: fs.rename(p, "x"),
    ):
        with pytest.raises(InvalidPathError):
            act("")


def test_a_symlinked_parent_is_never_followed(fs: FileSystem, tmp_path: Path) -> None:
    fs.mkdir("real")
    fs.mkdir("real/deep")
    write(fs, "real/deep/f")
    write(fs, "g")
    fs.symlink("real", "link")
    fs.symlink(str(tmp_path / "real"), "absolute")
    for parent in ("link", "absolute", "link/deep", "real/../link"):
        if ".." in parent:
            continue
        path = join(parent, "f")
        for act in (
            lambda path: fs.scandir(split_parent(path)[0]),
            fs.lstat,
            fs.open_read,
            fs.create,
            fs.open_write,
            fs.mkdir,
            fs.rmdir,
            fs.unlink,
            lambda path: fs.symlink("t", path),
            lambda path: fs.rename("g", path),
            lambda path: fs.rename(path, "h"),
            lambda path: fs.exchange("g", path),
            lambda path: fs.fsync_directory(split_parent(path)[0]),
        ):
            with pytest.raises(NotADirectoryError):
                act(path)
    assert names(fs) == {"real", "g", "link", "absolute"}


def test_a_directory_swapped_for_a_symlink(fs: FileSystem) -> None:
    fs.mkdir("d")
    write(fs, "d/f", b"ours")
    fs.mkdir("elsewhere")
    write(fs, "elsewhere/f", b"theirs")
    assert read(fs, "d/f") == b"ours"
    fs.rename("d", "moved")
    fs.symlink("elsewhere", "d")
    with pytest.raises(NotADirectoryError):
        fs.open_read("d/f")
    with pytest.raises(NotADirectoryError):
        fs.unlink("d/f")
    assert read(fs, "elsewhere/f") == b"theirs"


def test_names_that_are_too_long(fs: FileSystem) -> None:
    for act in (fs.create, fs.mkdir, fs.lstat, lambda path: fs.symlink("t", path)):
        with fails_with(errno.ENAMETOOLONG):
            act("ä" * 128)


def test_paths_beyond_path_max(fs: FileSystem) -> None:
    path = ""
    for _ in range(22):  # 22 * 201 bytes: more than one system call takes
        path = join(path, "d" * 200)
        fs.mkdir(path)
    write(fs, join(path, "f"), b"deep")
    assert read(fs, join(path, "f")) == b"deep"
    assert names(fs, path) == {"f"}
    fs.unlink(join(path, "f"))
    while path:
        fs.rmdir(path)
        path = split_parent(path)[0]


def test_errors_name_the_path(fs: FileSystem) -> None:
    fs.mkdir("some")
    for act in (fs.lstat, fs.scandir, fs.open_read, fs.unlink, fs.rmdir):
        with pytest.raises(FileNotFoundError) as caught:
            act("some/where")
        assert caught.value.filename == "some/where"


def test_paths() -> None:
    assert split_path("") == []
    assert split_path("a/b") == ["a", "b"]
    assert split_parent("a/b/c") == ("a/b", "c")
    assert split_parent("a") == ("", "a")
    assert join("", "a") == "a"
    assert join("a/b", "c") == "a/b/c"
    with pytest.raises(InvalidPathError):
        split_parent("")


class TestDisk:
    """What only a real disk can show."""

    @pytest.fixture(params=[True, False], ids=["openat2", "step by step"])
    def disk(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DiskFileSystem]:
        (tmp_path / "root").mkdir()
        fs = DiskFileSystem(tmp_path / "root", kernel_resolves=request.param)
        yield fs
        fs.close()

    def test_fifos_sockets_and_devices(self, disk: DiskFileSystem, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "root/fifo")
        assert disk.lstat("fifo").kind is StatKind.OTHER
        for act in (disk.open_read, disk.open_write):  # must not wait for the other end
            with pytest.raises(NotRegularFileError) as caught:
                act("fifo")
            assert caught.value.errno == errno.ENXIO

    def test_permissions_follow_the_umask(self, disk: DiskFileSystem, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            disk.create("plain").close()
            disk.create("run", executable=True).close()
            disk.mkdir("d")
        finally:
            os.umask(before)
        modes = [
            stat.S_IMODE((tmp_path / "root" / n).stat().st_mode) for n in ("plain", "run", "d")
        ]
        assert modes == [0o640, 0o750, 0o750]
        disk.set_metadata("plain", executable=True)
        assert stat.S_IMODE((tmp_path / "root/plain").stat().st_mode) == 0o750
        disk.set_metadata("plain", executable=False)
        assert stat.S_IMODE((tmp_path / "root/plain").stat().st_mode) == 0o640

    def test_a_moved_root_is_noticed(self, disk: DiskFileSystem, tmp_path: Path) -> None:
        write(disk, "f")
        (tmp_path / "root").rename(tmp_path / "moved")
        assert not disk.is_attached()
        (tmp_path / "root").mkdir()
        assert not disk.is_attached()
        write(disk, "g")  # goes where the folder went, not into what took its place
        assert {p.name for p in (tmp_path / "moved").iterdir()} == {"f", "g"}
        assert not list((tmp_path / "root").iterdir())

    def test_a_removed_root_is_not_an_empty_one(self, disk: DiskFileSystem, tmp_path: Path) -> None:
        (tmp_path / "root").rmdir()
        with pytest.raises(FileNotFoundError):
            disk.scandir("")

    def test_the_root_may_be_reached_by_a_symlink(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        fs = DiskFileSystem(tmp_path / "link")
        write(fs, "f")
        fs.close()
        assert (tmp_path / "real/f").read_bytes() == b"data"

    def test_a_root_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            DiskFileSystem(tmp_path / "no")
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError):
            DiskFileSystem(tmp_path / "file")

    @pytest.mark.slow
    def test_a_directory_that_flips_never_lets_us_out(
        self, disk: DiskFileSystem, tmp_path: Path
    ) -> None:
        """The attack that checking first and opening afterwards would lose."""
        outside = tmp_path / "outside"
        outside.mkdir()
        disk.mkdir("d")
        disk.symlink(str(outside), "evil")
        stop = threading.Event()

        def flip() -> None:
            with DiskFileSystemCloser(tmp_path / "root") as other:
                while not stop.is_set():
                    other.exchange("d", "evil")

        thread = threading.Thread(target=flip)
        thread.start()
        done = refused = 0
        try:
            for i in range(4000):
                try:
                    disk.create(f"d/{i}").close()
                    done += 1
                except NotADirectoryError:
                    refused += 1
        finally:
            stop.set()
            thread.join()
        assert not list(outside.iterdir())
        assert done
        assert refused

    def test_by_hand_where_the_kernel_cannot(
        self, disk: DiskFileSystem, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_args: object, **_fds: int) -> None:
            raise OSError(errno.EINVAL, "not on this file system")

        monkeypatch.setattr("node.files.syscalls.rename_noreplace", refuse)
        monkeypatch.setattr("node.files.syscalls.rename_exchange", refuse)
        test_nothing_is_created_over_anything(disk)
        disk.rename("f", "renamed")
        assert read(disk, "renamed") == b"mine"
        assert disk.lstat("renamed").links == 1
        disk.rename("d", "moved")
        assert disk.lstat("moved").kind is StatKind.DIRECTORY
        with pytest.raises(OSError, match="exchange") as caught:
            disk.exchange("renamed", "moved")
        assert caught.value.errno == errno.ENOTSUP


class DiskFileSystemCloser:
    def __init__(self, root: Path) -> None:
        self.fs = DiskFileSystem(root)

    def __enter__(self) -> DiskFileSystem:
        return self.fs

    def __exit__(self, *_: object) -> None:
        self.fs.close()


# --- alone, and clones ----------------------------------------------------------------------------


def test_nobody_else_may_have_open_what_is_opened_alone(fs: FileSystem) -> None:
    write(fs, "f", b"old")
    with fs.open_read("f"), fails_with(errno.EAGAIN):
        fs.open_alone("f")
    with fs.open_write("f"), fails_with(errno.EAGAIN):
        fs.open_alone("f")
    with fs.open_alone("f") as file:
        file.write_at(0, b"new")
        assert file.settle()
        assert file.stat() == fs.lstat("f")
    assert read(fs, "f") == b"new"
    with pytest.raises(FileNotFoundError):
        fs.open_alone("gone")


def test_a_clone_is_a_file_of_its_own_or_there_is_none(fs: FileSystem) -> None:
    write(fs, "f", b"data" * 5000)
    try:
        fs.clone("f", "g")
    except OSError:
        assert {entry.name for entry in fs.scandir("")} == {"f"}
        return
    with fs.open_write("g") as file:
        file.write_at(0, b"DATA")
    assert read(fs, "f") == b"data" * 5000
    assert read(fs, "g") == b"DATA" + b"data" * 4999
