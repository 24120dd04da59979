"""One worker's warden: a fork of the zygote that decides, forks the worker, and stands between it and its stub.

It outlives the zygote. The worker dies with it, and with the stub, as if it were the stub.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Iterable
from typing import NoReturn

from hotshelf.prewarm import request as words
from hotshelf.prewarm import signals
from hotshelf.prewarm.files import cannot_be_given, close, silence
from hotshelf.prewarm.fitting import fits, shadowed
from hotshelf.prewarm.footing import Footing
from hotshelf.prewarm.preload import loaded
from hotshelf.prewarm.request import Request
from hotshelf.prewarm.worker import Birth, first_path
from hotshelf_shared.errors import HotshelfError

#: How long a stub may take for its words.
_PATIENCE_S = 10.0


def attend(channel: socket.socket, zygote: Footing) -> Birth:
    """In a fork of the zygote; returns in the worker only, the warden ends by itself."""
    os.setsid()
    signals.as_fresh(ignore=signals.passed_on(), block=())  # whoever signals all processes means the worker, not its warden
    own = (channel.fileno(),)
    came: list[int] = []
    try:
        channel.settimeout(_PATIENCE_S)
        asked = Request.parse(words.receive(channel))
        os.chdir(asked.folder)
        unfit = fits(zygote, asked.footing) or cannot_be_given(asked.files, own) or _hidden(asked)
        words.send(channel, {"unfit": unfit})
        if unfit is not None or words.receive(channel, came).get("go") is not True or len(came) != len(asked.files) + 1:
            os._exit(0)
    except (OSError, EOFError, HotshelfError):
        os._exit(1)  # the stub has gone, or was none
    ended, noticed = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(noticed, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    warden = os.getpid()
    worker = os.fork()
    if worker == 0:
        signal.set_wakeup_fd(-1)
        channel.close()
        os.close(ended)
        os.close(noticed)
        return Birth(asked, came, warden)
    return _keep(worker, channel, ended, came)


def _hidden(asked: Request) -> str | None:
    folder = first_path(asked.program)
    module = None if folder is None else shadowed(_modules_in(folder), loaded(), folder)
    return None if module is None else f"{folder} has a module {module} of its own"


def _modules_in(folder: str) -> Iterable[str]:
    try:
        entries = list(os.scandir(folder))
    except OSError:  # no folder: a zip file, or a program that is not there
        return ()
    return [one.name for one in entries if "." in one.name or os.path.exists(f"{one.path}/__init__.py")]


def _keep(worker: int, channel: socket.socket, ended: int, came: Iterable[int]) -> NoReturn:
    """Signals to the worker, its end to the stub, the stub's end to the worker."""
    silence()
    close(came)
    os.chdir("/")
    channel.settimeout(None)
    while True:
        ready, _, _ = select.select([channel.fileno(), ended], [], [])
        if ended in ready:
            os.read(ended, 512)
            found, status = os.waitpid(worker, os.WNOHANG)
            if found:
                _tell(channel, status)
        elif not _pass_on(channel, worker):
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
            os._exit(0)


def _tell(channel: socket.socket, status: int) -> NoReturn:
    with contextlib.suppress(OSError):  # nobody waits for it any more
        words.send(channel, {"status": status})
    os._exit(0)


def _pass_on(channel: socket.socket, worker: int) -> bool:
    """False when the stub has gone."""
    try:
        numbers = channel.recv(256)
    except OSError:
        return False
    for number in numbers:
        if number in signal.valid_signals():
            os.kill(worker, number)
    return bool(numbers)
