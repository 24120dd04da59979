"""Where the zygote listens: a socket of this user's own, one zygote at a time, held by a lock that ends with its process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from dataclasses import dataclass

from hotshelf import private
from hotshelf_shared.errors import BadConfiguration, Conflict

#: Workers that ask at the same moment.
BACKLOG = 128
#: `sockaddr_un.sun_path` holds 108 bytes, the last of them NUL (unix(7)).
MAX_PATH_BYTES = 107
_HINT = "Set HOTSHELF_ZYGOTE, or --zygote, to a path in a folder of your own."


def chosen(given: str | None) -> str:
    """`given`, else ``HOTSHELF_ZYGOTE``, else the one of this user. Raises BadConfiguration."""
    try:
        path = given or os.environ.get("HOTSHELF_ZYGOTE") or f"{private.folder(hint=_HINT)}/zygote.sock"
    except OSError as error:
        raise BadConfiguration(f"there is no folder for the zygote's socket: {error.strerror}", hint=_HINT) from error
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise BadConfiguration(f"the zygote's socket has a path of more than {MAX_PATH_BYTES} bytes: {path[:120]}", hint=_HINT)
    return os.path.abspath(path)


@dataclass(frozen=True, slots=True)
class Listener:
    """The open socket, and the lock beside it."""

    path: str
    socket: socket.socket
    lock: int

    @classmethod
    def open(cls, path: str) -> Listener:
        """Raises Conflict when a zygote listens there, BadConfiguration when others could take its place."""
        folder = os.path.dirname(path)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            private.check(folder, hint=_HINT)
            lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BadConfiguration(f"cannot listen at {path}: {error.strerror or error}", hint=_HINT) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise Conflict(f"a zygote listens at {path} already", hint="Use it, end it, or give this one --zygote.") from error
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # of one that was killed: nobody else holds the lock
            os.fchmod(listening.fileno(), 0o600)
            listening.bind(path)
            listening.setblocking(False)
        except OSError as error:
            listening.close()
            os.close(lock)
            raise BadConfiguration(f"cannot listen at {path}: {error.strerror or error}", hint=_HINT) from error
        return cls(path, listening, lock)

    def begin(self) -> None:
        """Until then whoever asks is refused, and starts plainly."""
        self.socket.listen(BACKLOG)

    def leave(self) -> None:
        """In a forked child: nothing of it is ours."""
        self.socket.close()
        os.close(self.lock)

    def close(self) -> None:
        """In the zygote, at its end. The lock's file stays: to remove it would let two hold it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self.leave()
