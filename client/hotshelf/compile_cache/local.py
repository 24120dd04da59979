"""The cache on this machine's own disk: whether there is one, how large, and its end.

Invariant: nothing is deleted but what lies in a directory that is inductor's beyond doubt, and no link is followed to it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from hotshelf.archive.form import FOLDER, opened
from hotshelf.compile_cache.status import CacheError, CacheValidationError
from hotshelf.compiling.gathering import regular_files

#: What torch calls its directory unless it is told.
_DEFAULT = "torchinductor_"
#: What inductor keeps at the top of its directory: folders named by two characters of a digest, and these.
_OURS = re.compile(
    r"[a-z0-9]{2}|fxgraph|aotautograd|locks|triton|cache|dynamo|gcc|torch_cutlass|precompiled_headers|unhashed_kernel_inputs|\..*"
)


def size_of(where: Mapping[str, Path]) -> int:
    """Bytes of all files; 0 when there is no cache."""
    return sum(os.fstat(fd).st_size for place in where.values() for _, fd in regular_files(place))


def clear(folder: Path, *, dry_run: bool = False) -> int:
    """Deletes what is in inductor's directory; how many bytes that were. Raises CacheError, CacheValidationError."""
    if not os.path.lexists(folder):
        return 0
    try:
        with opened(folder, FOLDER) as fd:
            _check(folder, fd)
            size = size_of({"": folder})
            for name in () if dry_run else os.listdir(fd):
                if os.path.isdir(folder / name) and not os.path.islink(folder / name):
                    shutil.rmtree(name, dir_fd=fd)
                else:
                    os.unlink(name, dir_fd=fd)
    except NotADirectoryError as error:
        raise CacheValidationError(f"{folder} is a link or no directory: nothing was deleted") from error
    except OSError as error:
        raise CacheError(f"{folder} could not be cleared: {error.strerror}") from error
    return size


def _check(folder: Path, fd: int) -> None:
    """Raises CacheValidationError when it is a directory that somebody would miss."""
    real = Path(os.path.realpath(folder))
    for kept in (os.path.expanduser("~"), os.getcwd()):
        if Path(os.path.realpath(kept)).is_relative_to(real):
            raise CacheValidationError(f"{folder} holds {kept}: nothing was deleted")
    if os.path.ismount(folder):
        raise CacheValidationError(f"{folder} is a whole file system: nothing was deleted")
    if os.fstat(fd).st_uid != os.geteuid():
        raise CacheValidationError(f"{folder} is another user's: nothing was deleted")
    if folder.name.startswith(_DEFAULT):
        return
    if strange := [name for name in os.listdir(fd) if not _OURS.fullmatch(name)]:
        raise CacheValidationError(f"{folder} holds {strange[0][:80]!r}, which is not inductor's: nothing was deleted")
