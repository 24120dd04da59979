"""Gathering: the finished files of inductor's directories, in one folder that can be packed.

Invariant: what is being written meanwhile is left out, and so is everything but regular files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hotshelf.archive.form import FILE, disk_errors

#: Inductor's own locks, below its directory: `KEY.lock`, held while the files KEY.* are made.
_LOCKS = "locks"
#: What else lies there and is no cache: a compiler that was downloaded, a library's sources.
_NO_CACHE = (f"{_LOCKS}/", "gcc/", "torch_cutlass/")
#: A file that is none, or that is gone since its folder was listed.
_NO_FILE = (errno.ELOOP, errno.ENOENT, errno.ENXIO, errno.EACCES)


@dataclass(frozen=True, slots=True)
class Gathered:
    files: int
    size: int


def gather(into: Path, where: Mapping[str, Path]) -> Gathered:
    """Makes the folder `into`, and in it one for each directory by its name. Files are links where that can be, else copies.

    A directory that is not there is an empty one. Raises HotshelfError: InsufficientSpace, or what the disk says.
    """
    with disk_errors(f"gathering the compile cache into {into}"):
        into.mkdir(mode=0o700)
        began = _now(into)
        taken = [size for name, place in where.items() for size in _gather(into / name, place, began)]
    return Gathered(len(taken), sum(taken))


def _now(folder: Path) -> int:
    """By the clock that stamps files, in nanoseconds: it ticks later than any other."""
    mark = folder / ".mark"
    mark.touch(exist_ok=False)
    try:
        return mark.stat().st_mtime_ns
    finally:
        mark.unlink()


def _gather(into: Path, place: Path, began: int) -> Iterator[int]:
    """The size of each file taken."""
    under_way = {path.partition(".")[0] for path, fd in regular_files(place / _LOCKS) if _is_locked(fd)}
    for path, fd in regular_files(place):
        found, key = os.fstat(fd), path.rpartition("/")[2].partition(".")[0]
        if found.st_mtime_ns > began or key in under_way or _is_litter(path):
            continue
        target = into / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(place / path, target, follow_symlinks=False)
        except OSError:  # another disk, another's file, or one that went just now: its bytes are open
            _copy(fd, target)
        yield found.st_size


def _is_litter(path: str) -> bool:
    name = path.rpartition("/")[2]
    return path.startswith(_NO_CACHE) or name.startswith(".") or name.endswith((".tmp", ".lock"))


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False  # it is let go of when the descriptor is closed


def _copy(fd: int, target: Path) -> None:
    with open(fd, "rb", closefd=False) as source, open(target, "xb") as file:
        shutil.copyfileobj(source, file)


def regular_files(root: Path) -> Iterator[tuple[str, int]]:
    """Each below `root`: its path from there, and a descriptor to read it, which is closed when the next one comes.

    `root` itself may be a link, or not be there, which is as if it were empty.
    """
    if not root.is_dir():
        return
    top = os.path.realpath(root)
    for above, _, names, folder in os.fwalk(top):
        for name in sorted(names):
            try:
                fd = os.open(name, os.O_RDONLY | FILE, dir_fd=folder)
            except OSError as error:
                if error.errno in _NO_FILE:
                    continue
                raise
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    yield os.path.relpath(os.path.join(above, name), top), fd
            finally:
                os.close(fd)
