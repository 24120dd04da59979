"""A zygote that a test has to itself, and workers from it beside plain ones."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tests.servers.child import Child, clean_environment

HOTSHELF = (sys.executable, "-m", "hotshelf")
#: The zygote as it is, but for what it imports: what it does to a process has nothing to do with torch.
BARE = "import sys, hotshelf.prewarm.__main__ as zygote; zygote.preload = lambda more: None; zygote.main()"


class Prewarmed:
    """`run` and `start` go through the zygote, `plainly` past it: the same words, environment and folder."""

    def __init__(self, child: Child, folder: pathlib.Path, socket: pathlib.Path, environment: Mapping[str, str]) -> None:
        self.child, self.folder, self.socket = child, folder, socket
        self.environment = {**environment, "HOTSHELF_ZYGOTE": str(socket)}

    def run(self, *words: str, env: Mapping[str, str] = {}, **more: Any) -> subprocess.CompletedProcess[str]:
        return self._done([*HOTSHELF, "worker", *words], env, **more)

    def plainly(self, *words: str, env: Mapping[str, str] = {}, **more: Any) -> subprocess.CompletedProcess[str]:
        return self._done([sys.executable, *words], env, **more)

    def start(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        given = {"stdin": pipe, "stdout": pipe, "stderr": pipe, "cwd": self.folder, "env": self.environment, **more}
        given.setdefault("preexec_fn", _hears_all)
        return subprocess.Popen([*HOTSHELF, "worker", *words], text=True, **given)

    def script(self, text: str, name: str = "script.py") -> str:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return name

    def _done(self, argv: Sequence[str], env: Mapping[str, str], **more: Any) -> subprocess.CompletedProcess[str]:
        given = {"input": "", "cwd": self.folder, "timeout": 120, **more}
        return subprocess.run(argv, env={**self.environment, **env}, capture_output=True, text=True, **given)


def _hears_all() -> None:
    """Tests may have been started by what ignores these, nohup or a shell's &, and what is ignored stays so."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def zygote(folder: pathlib.Path, *program: str, bare: bool = True, restarts: int = 5) -> Iterator[Prewarmed]:
    """A running one; `folder` has room for its socket, its log and the test's scripts."""
    own, scripts = folder / "own", folder / "scripts"
    own.mkdir(mode=0o700)
    scripts.mkdir(exist_ok=True)
    environment = clean_environment()
    given = {"address": f"{own}/z", "format": "human", "preload": [], "program": program, "restarts": restarts}
    options = ["--prewarm", "--zygote", f"{own}/z", "--restarts", str(restarts), *program]
    argv = [sys.executable, "-c", BARE, json.dumps(given)] if bare else [*HOTSHELF, "worker", *options]
    child = Child(argv, log=folder / "zygote.log", env=environment, cwd=scripts)
    try:
        child.wait_ready(lambda: "ready after" in child.log_text(), timeout_s=180)
        yield Prewarmed(child, scripts, own / "z", environment)
    finally:
        child.kill()


def is_from_a_zygote(pid: int) -> bool:
    """By its command line, which a forked worker has from its zygote."""
    return b"prewarm" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()


def is_alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """The living children of `pid`, theirs and so on."""
    try:
        found = [int(one) for one in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [one for child in found if is_alive(child) for one in (child, *descendants(child))]
