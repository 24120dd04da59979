"""A folder to work in: private, empty, one of a few, and cleared by whoever comes next when its user was killed.

Invariant: a slot is held by a lock that ends with the process; what lies in a slot that nobody holds is litter.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hotshelf.archive.form import disk_errors
from hotshelf.compile_cache.status import CacheError, CacheValidationError

_PAUSE_S = 0.1
#: A kill may leave a slot's folder; loads are not limited, but their litter is.
LOADS = 1_000


@contextmanager
def slot(work_dir: Path, kind: str, *, most: int, patience_s: float) -> Iterator[Path]:
    """An empty folder below `work_dir`, gone at the end; waits for one of `most`. Raises CacheError, HotshelfError."""
    root = _private(work_dir)
    number, fd = _taken(root, kind, most, time.monotonic() + patience_s)
    folder = root / f"{kind}-{number}"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        with disk_errors(f"making {folder}"):
            folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


def _private(work_dir: Path) -> Path:
    """Ours alone: work directories are shared, and what is unpacked is code."""
    root = work_dir / f"hotshelf-compile-cache-{os.geteuid()}"
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(root)
    except OSError as error:
        raise CacheValidationError(f"{root} cannot be used: {error.strerror}; set LOCAL_WORK_DIR") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise CacheValidationError(f"{root} is not a folder of this user alone; set LOCAL_WORK_DIR to another place")
    return root


def _taken(root: Path, kind: str, most: int, deadline: float) -> tuple[int, int]:
    while True:
        for number in range(most):
            with disk_errors(f"locking {root / kind}"):
                fd = os.open(root / f"{kind}-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            return number, fd
        if time.monotonic() > deadline:
            raise CacheError(f"{most} {kind}s are under way already (MAX_CONCURRENT_SAVES)")
        time.sleep(_PAUSE_S)
