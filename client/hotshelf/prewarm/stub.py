"""The stub: what `hotshelf worker PROGRAM` is. Asks the zygote for a worker, passes signals on, and ends as the worker does.

Whatever speaks against a worker from the zygote, the stub becomes the program itself, and nothing has started twice.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from types import FrameType
from typing import Any, NoReturn

from hotshelf.prewarm import files, signals
from hotshelf.prewarm import request as words
from hotshelf.prewarm.address import chosen
from hotshelf.prewarm.footing import Footing
from hotshelf.prewarm.program import Program, python
from hotshelf_shared.errors import HotshelfError

#: For a zygote that is stopped or hangs: longer than fifty workers at once take.
_ANSWER_S = 10.0


def run(program: Program, zygote: str | None = None) -> NoReturn:
    """Never returns: this process ends as the worker does, or becomes it. `zygote` is its socket, by default this user's."""
    open_here, blocked = files.inherited(), signals.blocked()
    channel = _ask(program, zygote, open_here)
    if channel is None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.execv(sys.executable, python(*program.words))  # noqa: S606 - as whoever started us asked
    _attend(channel, open_here, blocked)


def _ask(program: Program, zygote: str | None, open_here: tuple[int, ...]) -> socket.socket | None:
    """The connection to a worker that has been told to start, or None."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        channel.settimeout(_ANSWER_S)
        channel.connect(chosen(zygote))
        if words.peer_uid(channel) != os.geteuid():
            raise PermissionError("the zygote is somebody else's")
        unfit = _handed(channel, program, open_here)
        if unfit is None:
            signal.pthread_sigmask(signal.SIG_BLOCK, signals.passed_on())  # what comes from here on is the worker's
            here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            words.send(channel, {"go": True}, (*open_here, here))
            channel.settimeout(None)
            return channel
        if 2 in open_here:
            print(f"hotshelf worker: started without the zygote: {unfit}", file=sys.stderr, flush=True)
    except (OSError, EOFError, HotshelfError):
        pass  # nobody there, or nobody to rely on: the program starts all the same
    channel.close()
    return None


def _handed(channel: socket.socket, program: Program, open_here: tuple[int, ...]) -> str | None:
    if len(open_here) >= words.MAX_FILES:
        return f"it inherits {len(open_here)} open files"
    asked = words.Request(
        program=program,
        footing=Footing.here(),
        executable=sys.executable,
        folder=os.getcwd(),
        umask=umask(),
        files=open_here,
        ignored=signals.ignored(),
        blocked=signals.blocked(),
    )
    words.send(channel, asked.to_json())
    answer = words.receive(channel).get("unfit", "it gave no answer")
    return None if answer is None else str(answer)


def _attend(channel: socket.socket, open_here: tuple[int, ...], blocked: tuple[int, ...]) -> NoReturn:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        try:
            channel.send(bytes([number]))
        except OSError:
            return  # the worker has just ended: its status is on its way
        if number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)

    numbers = signals.passed_on()
    signals.handle(numbers, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, set(numbers) - set(blocked))
    files.close(
        set(open_here) - set(files.STREAMS)
    )  # they are the worker's: who reads its output sees the end when the worker closes it
    files.silence()
    try:
        status: Any = words.receive(channel).get("status")
    except (OSError, EOFError, HotshelfError):
        status = None
    signals.end_like(status if isinstance(status, int) else signal.SIGKILL)


def umask() -> int:
    """The mask for new files; to ask is to set it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
