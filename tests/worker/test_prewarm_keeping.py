"""A zygote that was started with a program: kept going, and ended as that program ends."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import sys

import pytest

from hotshelf.prewarm.supervision import wait_before_restart
from tests.servers.child import Child, clean_environment
from tests.waiting import wait_until

from .prewarmed import BARE, descendants, zygote

#: Each run leaves its number of lines in `runs`, and does what its line of `plan` says.
PLANNED = """
import os, signal, sys
with open("runs", "a") as runs:
    runs.write(f"{os.getpid()} {sys.argv[1:]}\\n")
word = open("plan").read().split()[len(open("runs").readlines()) - 1]
if word == "serve":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
    open("serving", "w").close()
    signal.pause()
elif word == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
sys.exit(int(word))
"""


def kept(folder: pathlib.Path, plan: str, restarts: int = 5) -> Child:
    (folder / "plan").write_text(plan)
    (folder / "script.py").write_text(PLANNED)
    program = ["script.py", "--own", "words"]
    given = {"address": f"{folder}/z", "format": "quiet", "preload": [], "program": program, "restarts": restarts}
    argv = [sys.executable, "-c", BARE, json.dumps(given)]
    return Child(argv, log=folder / "log", env=clean_environment(), cwd=folder)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.mark.parametrize(
    ("plan", "restarts", "code", "runs"),
    [
        ("0", 5, 0, 1),
        ("2", 5, 2, 1),
        ("78", 5, 78, 1),
        ("3 crash 0", 5, 0, 3),
        ("3", 0, 3, 1),
        ("crash 4", 1, 4, 2),
        ("3 crash", 1, -signal.SIGSEGV, 2),
    ],
)
def test_it_is_started_again_when_it_fails_and_its_last_end_is_the_zygote_s(
    folder: pathlib.Path, plan: str, restarts: int, code: int, runs: int
) -> None:
    child = kept(folder, plan, restarts)
    assert child.wait() == code, child.log_text()
    lines = (folder / "runs").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["['--own', 'words']"] * runs
    assert child.log_text().count("it is started again") == runs - 1
    assert not (folder / "z").exists()


def test_a_signal_to_the_zygote_is_the_worker_s_and_ends_both(folder: pathlib.Path) -> None:
    child = kept(folder, "serve 0")
    wait_until((folder / "serving").exists)
    [worker] = descendants(child.pid)
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait() == 9
    assert len((folder / "runs").read_text().splitlines()) == 1
    assert not descendants(worker)


def test_a_killed_zygote_takes_the_worker_that_it_keeps_with_it(folder: pathlib.Path) -> None:
    child = kept(folder, "serve")
    wait_until((folder / "serving").exists)
    [worker] = descendants(child.pid)
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: not pathlib.Path(f"/proc/{worker}").exists(), what="its worker's end")
    child.wait()


def test_more_workers_are_forked_beside_the_one_that_is_kept(tmp_path: pathlib.Path) -> None:
    with zygote(tmp_path, "-m", "http.server", "--bind", "127.0.0.1", "0") as own:
        assert own.run(own.script("print('beside')")).stdout == "beside\n"
        wait_until(lambda: len(descendants(own.child.pid)) == 1)


@pytest.mark.parametrize("code", [0, 2, 78, -signal.SIGINT])
def test_what_is_done_hopeless_or_meant_is_not_started_again(code: int) -> None:
    assert wait_before_restart(code, failures=1, most=9) is None


def test_the_first_restart_is_at_once_and_later_ones_wait_longer_up_to_half_a_minute() -> None:
    waits = [wait_before_restart(1, failures=failures, most=9) for failures in range(1, 11)]
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, None]
