"""The demo's processes: started, waited for, ended without a trace, whatever ends the demo."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hotshelf_shared.errors import HotshelfError

START_WAIT_S = 60.0
STOP_WAIT_S = 15.0
POLL_S = 0.05


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on at this moment, all different."""
    with contextlib.ExitStack() as stack:
        bound = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in bound]


@contextlib.contextmanager
def running(
    argv: Sequence[str], *, log: Path, answers: Callable[[], bool], env: Mapping[str, str] | None = None, gentle: bool = True
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a session of its own, from when it answers until the block ends. Raises HotshelfError with its last words.

    `gentle` asks it to end before it is made to.
    """
    with log.open("wb") as out, contextlib.ExitStack() as stack:
        with uninterrupted():
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd=log.parent, start_new_session=True
            )
            stack.callback(stop, child, gentle=gentle)
        _wait(child, answers, log)
        yield child


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A Ctrl-C takes effect after the block: one amid a start would leave a process behind that nobody knows of."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def stop(child: subprocess.Popen[bytes], *, gentle: bool = True) -> None:
    """Ends the process and its whole session; does nothing when it has ended."""
    if child.poll() is None and gentle:
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_WAIT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _wait(child: subprocess.Popen[bytes], answers: Callable[[], bool], log: Path) -> None:
    until = time.monotonic() + START_WAIT_S
    while not answers():
        if child.poll() is not None or time.monotonic() > until:
            words = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
            raise HotshelfError(f"{log.stem} did not start: {words[-500:]}", hint=f"See {log}.")
        time.sleep(POLL_S)
