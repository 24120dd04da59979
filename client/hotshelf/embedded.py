"""Embedded mode: with no daemon on the socket, the first process that needs one starts it, and all of them share it.

Invariants: a lock file decides who starts; the daemon lives in a session of its own, so no signal to a worker reaches it,
and ends by itself some seconds after the last connection is gone.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

from hotshelf import private
from hotshelf.transport import Channel, Transport
from hotshelf_shared.errors import BadConfiguration, DaemonUnavailable

#: How long the daemon outlives its last connection, in seconds.
IDLE_EXIT_S = 10
START_WAIT_S = 120.0
POLL_S = 0.02
LOG_TAIL_BYTES = 4_000

#: Detaches: the shell goes away at once, the daemon is nobody's child and leaves no zombie in a worker.
_LAUNCH = '"$@" </dev/null >>"$HOTSHELF_LAUNCH_LOG" 2>&1 & echo $!'


def wanted(autostart: bool | None) -> bool:
    """`autostart`, or what ``HOTSHELF_AUTOSTART`` says."""
    if autostart is not None:
        return autostart
    return os.environ.get("HOTSHELF_AUTOSTART", "").lower() in ("1", "true", "yes", "on")


def default_socket(store: str) -> str:
    """A socket of this user for this store, where no `/run` is writable: the same for every process that names the store."""
    folder = private.folder(hint="Set HOTSHELF_SOCKET.")
    return f"{folder}/{sha256(os.path.realpath(store).encode()).hexdigest()[:16]}.sock"


class Starting:
    """A transport that starts the daemon when nobody answers."""

    def __init__(self, transport: Transport, store: str) -> None:
        self._transport = transport
        self._store = store
        self.address = transport.address

    def connect(self, deadline: float) -> Channel:
        try:
            return self._transport.connect(deadline)
        except DaemonUnavailable:
            until = min(deadline, time.monotonic() + START_WAIT_S)
        with _turn(f"{self.address}.lock", until):
            try:
                return self._transport.connect(deadline)  # whoever had the turn before has started it
            except DaemonUnavailable:
                return self._start(until)

    def _start(self, until: float) -> Channel:
        log = f"{self.address}.log"
        started_at = os.path.getsize(log) if os.path.exists(log) else 0
        pid = _launch(self.address, self._store, log)
        while True:
            try:
                return self._transport.connect(until)
            except DaemonUnavailable as error:
                if not _is_alive(pid):
                    raise BadConfiguration(
                        f"hotshelfd could not be started: {_tail(log, started_at)}", hint=f"Its log is {log}."
                    ) from error
                if time.monotonic() >= until:
                    raise
            time.sleep(POLL_S)


def _launch(socket: str, store: str, log: str) -> int:
    argv = [sys.executable, "-m", "hotshelf_daemon", "--socket", socket, "--store", store]
    argv += ["--listen", "", "--idle-exit", str(IDLE_EXIT_S)]
    done = subprocess.run(
        ["/bin/sh", "-c", _LAUNCH, "hotshelfd", *argv],
        env={**os.environ, "HOTSHELF_LAUNCH_LOG": log},
        stdout=subprocess.PIPE,
        start_new_session=True,
        check=True,
    )
    return int(done.stdout)


@contextmanager
def _turn(path: str, until: float) -> Iterator[None]:
    """One process at a time; the lock dies with its holder."""
    os.makedirs(os.path.dirname(path), mode=0o750, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise DaemonUnavailable(f"another process has been starting hotshelfd for too long ({path})") from None
                time.sleep(POLL_S)
        yield
    finally:
        os.close(fd)


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _tail(log: str, start: int) -> str:
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            file.seek(start)
            lines = [line.strip() for line in file.read(LOG_TAIL_BYTES).splitlines() if line.strip()]
    except OSError as error:
        return str(error)
    return " ".join(lines[-3:]) or "it ended without a word"
