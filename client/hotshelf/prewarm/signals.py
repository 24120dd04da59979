"""Signals: which are passed on to a worker, which a process starts with, and how one ends as another has ended."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterable
from types import FrameType
from typing import NoReturn

#: What no handler sees, what concerns this process alone, and what it brings upon itself by a defect.
_OWN = frozenset(
    getattr(signal, f"SIG{name}")
    for name in (
        "KILL",
        "STOP",
        "CHLD",
        "PIPE",
        "XFSZ",
        "XCPU",
        "SEGV",
        "BUS",
        "FPE",
        "ILL",
        "TRAP",
        "SYS",
        "TTIN",
        "TTOU",
        "URG",
    )
)
#: Python ignores them from its start.
_PYTHONS = frozenset((signal.SIGPIPE, signal.SIGXFSZ))


def passed_on() -> list[int]:
    """Those that somebody may send to a stub and mean for its worker; what is ignored stays ignored."""
    return [int(number) for number in signal.valid_signals() - _OWN if signal.getsignal(number) is not signal.SIG_IGN]


def ignored() -> tuple[int, ...]:
    """What this process was told to ignore by whoever started it."""
    return tuple(int(one) for one in signal.valid_signals() - _PYTHONS if signal.getsignal(one) is signal.SIG_IGN)


def blocked() -> tuple[int, ...]:
    return tuple(int(one) for one in signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def handle(numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> None:
    for number in numbers:
        signal.signal(number, handler)


def as_fresh(*, ignore: Iterable[int], block: Iterable[int]) -> None:
    """As a Python has them that was just started with `ignore` and `block`."""
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):  # KILL, STOP and the C library's own
            signal.signal(number, signal.SIG_IGN if number in _PYTHONS else signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for one in ignore:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(one, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, {one for one in block if one in signal.valid_signals()})


def end_like(status: int) -> NoReturn:
    """Ends this process with a wait status: the same exit code, or of the same signal, without a core of its own."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (-code,))
        os.kill(os.getpid(), -code)
        os._exit(128 - code)  # process 1 of a container outlives its own signals
    os._exit(code)
