"""The socket itself: bound, then its mode and group, then listening; a path that somebody serves is never taken over.

The caller holds the store's lock, so a stale socket of our own can be told from a living daemon's by connecting to it.
"""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat

from hotshelf_shared.errors import BadConfiguration


def group_id(name: str | None) -> int | None:
    """A group's id from its name or number. Raises BadConfiguration."""
    if name is None:
        return None
    if name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise BadConfiguration(f"there is no group {name!r}", hint="Correct `socket_group`; a number works too.") from None


def listen_on(path: str, *, mode: int, group: int | None) -> socket.socket:
    """A bound socket with its mode and group set, not yet listening: nobody can connect before it is as it should be."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o750, exist_ok=True)
        _remove_stale(path)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bound.bind(path)
        if group is not None:
            os.chown(path, -1, group, follow_symlinks=False)
        os.chmod(path, mode)
    except OSError as error:
        reason = f"the socket {path} cannot be made: {error.strerror or error}"
        raise BadConfiguration(reason, hint="Set `socket` (HOTSHELF_SOCKET) to a path this user may write.") from error
    bound.setblocking(False)
    return bound


def _remove_stale(path: str) -> None:
    try:
        seen = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(seen.st_mode):
        raise BadConfiguration(f"{path} is there and is no socket", hint="Remove it, or set `socket` to another path.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            os.unlink(path)
            return
        except OSError:
            pass  # it accepts slowly or not us: somebody lives there
    raise BadConfiguration(
        f"another daemon already serves {path}", hint="Stop it, or give this one a `socket` (HOTSHELF_SOCKET) of its own."
    )


def remove_own(path: str, inode: int) -> None:
    """On the way out: only if the path is still the socket that we made."""
    with contextlib.suppress(OSError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
