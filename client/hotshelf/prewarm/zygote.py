"""The zygote: imports, then forks a warden for every stub that asks, and keeps the worker that it was started with going.

It reads nothing that a stub sends: that is the warden's part, so no stub can hold up another.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import time
from dataclasses import dataclass

from hotshelf.prewarm import files, signals, warden
from hotshelf.prewarm import request as words
from hotshelf.prewarm.address import Listener
from hotshelf.prewarm.preload import threads
from hotshelf.prewarm.request import Request
from hotshelf.prewarm.supervision import SOUND_S, wait_before_restart
from hotshelf.prewarm.worker import Birth

#: Between two attempts to fork where there are too many processes, seconds.
FORK_PAUSE_S = 1.0
_ENDING = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGQUIT))


@dataclass(slots=True)
class _Own:
    """The worker that the zygote was started with: its process, when it began, when it is to begin again."""

    request: Request
    pid: int = 0
    began: float = 0.0
    failures: int = 0
    due: float | None = 0.0


class Zygote:
    """`here` is what it stands on; `own` the worker to keep going, at most `restarts` times in a row."""

    def __init__(self, listener: Listener, here: Request, *, keep: bool, restarts: int) -> None:
        self._listener = listener
        self._here = here.footing
        self._own = _Own(here) if keep else None
        self._restarts = restarts
        self._ending = 0
        self._heard, self._hearing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> Birth | int:
        """In a child what it is to become; in the zygote, at its end, the wait status to end with."""
        gc.collect()
        gc.freeze()  # the collector would write to every page that the children share
        signal.set_wakeup_fd(self._hearing, warn_on_full_buffer=False)
        signals.handle((signal.SIGCHLD, *self._concerning()), lambda _number, _frame: None)
        poll = select.poll()
        poll.register(self._listener.socket, select.POLLIN)
        poll.register(self._heard, select.POLLIN)
        while True:
            birth = self._begin()
            if birth is not None:
                return birth
            for number, _ in poll.poll(self._patience_ms()):
                came = self._hear() if number == self._heard else self._admit()
                if came is not None:
                    return came

    def _concerning(self) -> list[int]:
        given = signals.passed_on() if self._own else [*_ENDING, signal.SIGHUP]
        return [number for number in given if number != signal.SIGTSTP]

    def _patience_ms(self) -> float | None:
        due = self._own.due if self._own else None
        return None if due is None else max(0.0, due - time.monotonic()) * 1000 + 1

    def _begin(self) -> Birth | None:
        own = self._own
        if own is None or own.due is None or own.due > time.monotonic():
            return None
        own.due, own.began = None, time.monotonic()
        zygote = os.getpid()
        try:
            own.pid = self._fork()
        except OSError as error:  # too many processes, for now
            own.failures += 1
            own.due = own.began + FORK_PAUSE_S
            _say(f"cannot fork: {error.strerror}")
            return None
        if own.pid:
            return None
        opened = [os.dup(number) for number in own.request.files]
        return Birth(own.request, (*opened, os.open(".", os.O_PATH | os.O_DIRECTORY)), zygote)

    def _admit(self) -> Birth | None:
        try:
            channel, _ = self._listener.socket.accept()
        except OSError:
            return None  # it has gone again
        with channel:
            if words.peer_uid(channel) != os.geteuid():
                return None
            try:
                pid = self._fork()
            except OSError as error:
                _say(f"cannot fork: {error.strerror}")
                return None
            if pid == 0:
                files.close(self._own.request.files[len(files.STREAMS) :] if self._own else ())  # the other worker's
                return warden.attend(channel, self._here)
            return None

    def _fork(self) -> int:
        if threads() > 1:
            raise OSError(0, "a thread has begun that no child would have")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # closed: None, or nobody reads there any more
                stream.flush()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            self._listener.leave()
            os.close(self._heard)
            os.close(self._hearing)
        return pid

    def _hear(self) -> int | None:
        for number in dict.fromkeys(os.read(self._heard, 4096)):
            status = self._reap() if number == signal.SIGCHLD else self._signalled(number)
            if status is not None:
                return status
        return None

    def _signalled(self, number: int) -> int | None:
        if self._own is None:
            return 0
        if number in _ENDING:
            self._ending = number
        if self._own.pid:
            os.kill(self._own.pid, number)
            return None
        return self._ending or None

    def _reap(self) -> int | None:
        """Every child that has ended, adopted ones too: in a container this may be process 1."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid == 0:
                return None
            if self._own is not None and pid == self._own.pid:
                done = self._ended(self._own, status)
                if done is not None:
                    return done

    def _ended(self, own: _Own, status: int) -> int | None:
        own.pid = 0
        code, lived = os.waitstatus_to_exitcode(status), time.monotonic() - own.began
        own.failures = 1 if lived >= SOUND_S else own.failures + 1
        wait = None if self._ending else wait_before_restart(code, failures=own.failures, most=self._restarts)
        if wait is None:
            return status
        own.due = time.monotonic() + wait
        how = f"of signal {-code}" if code < 0 else f"with {code}"
        _say(
            f"the worker ended {how} after {lived:.0f} s; it is started again in {wait:.0f} s"
            f" ({own.failures} of {self._restarts})"
        )
        return None


def _say(text: str) -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # nobody reads it: no reason to end
        print(f"hotshelf zygote: {text}", file=sys.stderr, flush=True)
