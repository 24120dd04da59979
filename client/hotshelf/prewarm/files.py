"""Open files as a program finds them: by number. A worker has its stub's, each under the number that it has there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
from collections.abc import Iterable, Sequence

STREAMS = (0, 1, 2)


def inherited() -> tuple[int, ...]:
    """What a program that this process executes would find open."""
    found = []
    for number in _open():
        with contextlib.suppress(OSError):  # the folder itself, read until just now
            if os.get_inheritable(number):
                found.append(number)
    return tuple(sorted(found))


def cannot_be_given(numbers: Sequence[int], ours: Iterable[int]) -> str | None:
    """Why a child of this process cannot have files under `numbers`, besides `ours`, which it lets go of; None when it can."""
    if not set(STREAMS) <= set(numbers):
        return "its stdin, stdout or stderr is closed"
    taken = set(numbers) & set(_open()) - {*STREAMS, *ours}
    if taken:
        return f"the zygote has a file of its own under the number {min(taken)}"
    if max(numbers) + 2 * len(numbers) >= resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
        return "its open files have too high numbers"
    return None


def place(files: Sequence[int], numbers: Sequence[int]) -> None:
    """Puts each of `files` under its number, for this process and what it executes, and closes where it was."""
    clear = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(numbers) + 1) for fd in files]
    close(files)
    for fd, number in zip(clear, numbers, strict=True):
        os.dup2(fd, number, inheritable=True)
    close(clear)


def close(files: Iterable[int]) -> None:
    for fd in files:
        with contextlib.suppress(OSError):
            os.close(fd)


def silence() -> None:
    """stdin, stdout and stderr lead nowhere from here on."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in STREAMS:
        os.dup2(nothing, number, inheritable=True)
    os.close(nothing)


def _open() -> list[int]:
    """Without the one that the listing itself has open, which is gone by then."""
    return [number for number in map(int, os.listdir("/proc/self/fd")) if _is_open(number)]


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
