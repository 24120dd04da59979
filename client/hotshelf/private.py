"""A folder of this user alone, for sockets, where no `/run` is writable."""

from __future__ import annotations

import os
import tempfile
from stat import S_ISDIR

from hotshelf_shared.errors import BadConfiguration


def folder(*, hint: str) -> str:
    """The same for every process of this user. Raises BadConfiguration when somebody else made it, or may write there."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    path = f"{base}/hotshelf-{os.getuid()}"
    os.makedirs(path, mode=0o700, exist_ok=True)
    check(path, hint=hint)
    return path


def check(path: str, *, hint: str) -> None:
    """Raises BadConfiguration unless it is a folder, no link, of this user, where nobody else may write."""
    seen = os.lstat(path)
    if not S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid() or seen.st_mode & 0o022:
        raise BadConfiguration(f"{path} is not a private folder of uid {os.getuid()}", hint=hint)
