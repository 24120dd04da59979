"""Merging: what a bundle holds, into inductor's directories, while others may be compiling there.

Invariant: a file that is there is never replaced, changed or seen half; no link is followed below a directory. Inductor names
files by what they were made from, not by where they lie, so a cache works wherever it is put; Triton's groups alone name paths.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from hotshelf.archive.form import FILE, FOLDER, disk_errors, opened
from hotshelf.compiling.gathering import regular_files

#: Triton's list of the files that one kernel became, each by its whole path.
_GROUP = "__grp__"
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES)


def merge(folder: Path, where: Mapping[str, Path]) -> int:
    """What `gather` made, below each directory of the same name; how many files were not there yet.

    Raises HotshelfError, InsufficientSpace among them; what was merged till then is whole, and stays.
    """
    new = 0
    for name, place in where.items():
        with disk_errors(f"merging a compile cache into {place}"):
            for path, fd in regular_files(folder / name):
                new += _merge_file(folder / name / path, fd, place, path)
    return new


def _merge_file(source: Path, fd: int, place: Path, path: str) -> bool:
    """Whether it is new."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    above, _, name = path.rpartition("/")
    with opened(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as root, _folder_of(root, above) as target:
        if name.startswith(_GROUP):
            group = relocated(_read(fd), place / above)
            return group is not None and _place(target, name, group)
        try:
            os.link(source, name, dst_dir_fd=target, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return _place(target, name, _read(fd))
    return True


def relocated(group: bytes, folder: Path) -> bytes | None:
    """Triton's group of files that lie in `folder` now. None when it is not of the form that is known."""
    try:
        paths = json.loads(group)["child_paths"]
        moved = {name: str(folder / os.path.basename(path)) for name, path in paths.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return json.dumps({"child_paths": moved}).encode()


def _read(fd: int) -> bytes:
    with open(fd, "rb", closefd=False) as file:
        return file.read()


def _place(folder: int, name: str, data: bytes) -> bool:
    """Complete or not at all, and never in the place of another."""
    unseen = f".hotshelf-{secrets.token_hex(8)}"
    try:
        with opened(unseen, os.O_WRONLY | os.O_CREAT | os.O_EXCL | FILE, folder) as fd, open(fd, "wb", closefd=False) as file:
            file.write(data)
        try:
            os.link(unseen, name, src_dir_fd=folder, dst_dir_fd=folder)
        except FileExistsError:
            return False
        return True
    finally:
        with suppress(FileNotFoundError):
            os.unlink(unseen, dir_fd=folder)


@contextmanager
def _folder_of(root: int, above: str) -> Iterator[int]:
    """The folder of a file, made on the way down. Raises OSError for a link in its place."""
    if not above:
        yield root
        return
    outer, _, name = above.rpartition("/")
    with _folder_of(root, outer) as parent:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        with opened(name, FOLDER, parent) as folder:
            yield folder
