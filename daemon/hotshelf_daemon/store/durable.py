"""The few file operations on whose order everything rests: create, seal, rename without replacement, sync.

Invariant: an fsync that failed is never tried again (the kernel may have dropped the dirty pages and would then report
success): the caller throws the file away.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Iterator

from hotshelf_shared.errors import DaemonUnavailable, HotshelfError, InsufficientSpace

READ_ONLY_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_RENAME_NOREPLACE = 1
_SYNC_FILE_RANGE_WRITE = 2
#: _IOW(0x94, 9, int)
_FICLONE = 0x40049409
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """The disk's errors as ours, saying what was being done."""
    try:
        yield
    except OSError as error:
        raise as_ours(error, doing) from error


def as_ours(error: OSError, doing: str) -> HotshelfError:
    reason = f"{doing} failed: {os.strerror(error.errno) if error.errno else error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(reason)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return HotshelfError(reason, hint="The store is not writable: check its mount and owner.")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "Ask again; raise the daemon's limit of open files (ulimit -n, LimitNOFILE) when it stays so."
        return DaemonUnavailable(reason, hint=hint, retry_after_s=1)
    return HotshelfError(reason, hint="Look at the disk: `dmesg`, `hotshelf doctor`.")


class DiskFull(InsufficientSpace):
    """The file system has less room than it said."""

    default_hint = "Free room or inodes on the store's file system."


def create(folder: int, name: str, size: int) -> int:
    """A new private file of `size` allocated bytes, open for reading and writing."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        allocate(fd, size)
    except BaseException:
        os.close(fd)
        os.unlink(name, dir_fd=folder)
        raise
    return fd


def allocate(fd: int, size: int) -> None:
    if not size:
        return
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(fd, size)  # a file system without allocation: ENOSPC then shows while writing


def clone(from_fd: int, fd: int) -> bool:
    """All of a file's bytes into another one without copying them: each is free to change, and the other keeps what it has.
    False where the file system, or two of them, cannot; then the other is as it was."""
    try:
        fcntl.ioctl(fd, _FICLONE, from_fd)
    except OSError:
        return False
    return True


def seal(fd: int, *, keep: bool = True) -> None:
    """Read-only for the group, on the disk, closed; out of the page cache too unless it is to `keep` it."""
    try:
        os.fchmod(fd, 0o440)
        os.fsync(fd)
        if not keep:
            forget_pages(fd, 0, 0)  # all of it
    finally:
        os.close(fd)


def be_modest(niceness: int) -> None:
    """This thread goes after the others when processors are short: those that answer workers, above all."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def start_writeback(fd: int, start: int, stop: int) -> None:
    """Begins to write these bytes to the disk, without waiting and without any promise: only `seal` gives one."""
    with contextlib.suppress(AttributeError):  # no such call in this C library
        _libc.sync_file_range(fd, ctypes.c_int64(start), ctypes.c_int64(stop - start), _SYNC_FILE_RANGE_WRITE)


def forget_pages(fd: int, start: int, stop: int) -> None:
    """Takes out of the page cache what of these bytes is with the disk by now: others' pages need the room more.

    It must not wait for the disk: whoever waits is told of its errors, and the fsync that counts would then say nothing.
    """
    with contextlib.suppress(OSError):  # a hint, and nothing more
        os.posix_fadvise(fd, start, stop - start, os.POSIX_FADV_DONTNEED)


def rename_new(from_folder: int, name: str, to_folder: int, new_name: str) -> None:
    """Atomic rename that never replaces: FileExistsError when `new_name` is there."""
    result = _libc.renameat2(from_folder, os.fsencode(name), to_folder, os.fsencode(new_name), _RENAME_NOREPLACE)
    if result == 0:
        return
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):  # a file system without the flag: the store's lock makes us its only writer
        if exists(to_folder, new_name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new_name)
        os.rename(name, new_name, src_dir_fd=from_folder, dst_dir_fd=to_folder)
        return
    raise OSError(code, os.strerror(code), new_name)


def exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def open_folder(path: str, folder: int | None = None) -> int:
    """A directory's descriptor; a symbolic link in its place is refused."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)


def make_folder(folder: int, name: str) -> bool:
    """Makes a directory and syncs its parent; False when it was there. The parent's set-group-id bit is inherited."""
    try:
        os.mkdir(name, 0o750, dir_fd=folder)
    except FileExistsError:
        return False
    os.fsync(folder)
    return True


def pwrite_all(fd: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written
