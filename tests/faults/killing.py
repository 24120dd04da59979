"""SIGKILL at every system call that changes something, one run each: `… killing SCENARIO FOLDER STRIDE`.

A child process holds the whole daemon and comes to the moment before the deed. strace then watches one of its threads and
kills it as it enters the N-th call of one kind. Afterwards the store is looked at as it lies, started anew, and asked for
the same again. Of SQLite's writes into its pages only every STRIDE-th is a point. Prints a JSON report.

This process stays free of threads, because it forks.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tests.faults.inside import Inside
from tests.faults.invariants import litter, visible_wrongs, wrongs_after_restart
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.waiting import wait_until

#: What changes a disk, or tells somebody. Opening with O_CREAT is covered by what follows it.
CALLS = (
    "fallocate", "fchmod", "fdatasync", "fsync", "ftruncate", "mkdir", "mkdirat", "pwrite64", "rename", "renameat",
    "renameat2", "rmdir", "splice", "symlink", "symlinkat", "unlink", "unlinkat", "write",
)  # fmt: skip
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
#: No run takes this long; a status that no process can have says that one did.
HANG_S, HUNG = 60.0, 1 << 20


@dataclass(frozen=True, slots=True)
class Point:
    """The `number`-th call of this kind in this thread."""

    thread: str
    call: str
    number: int


@dataclass(frozen=True, slots=True)
class Found:
    """What became of one run. `killed` is False when the point was never reached."""

    point: Point
    killed: bool
    wrongs: list[str]


# ---- processes


def in_a_child(work: Callable[[], object]) -> int:
    """Forks; the child's exit status is 0, or 1 after a traceback. The pid. It ends when this process does."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def told_by_a_child(work: Callable[[], Any]) -> Any:
    """`work` in a child; its result by way of JSON."""
    with tempfile.TemporaryFile("w+") as report:
        _, status = os.waitpid(in_a_child(lambda: (json.dump(work(), report), report.flush())), 0)
        assert status == 0, f"a check ended with {status}"
        report.seek(0)
        return json.load(report)


class Staged:
    """A child that has come to the moment before the deed, and waits for `go`."""

    def __init__(self, scenario: Scenario, then: Callable[[Scenario, Inside], None] | None = None) -> None:
        """`then` is done on the word instead of the deed alone."""
        told, tell = os.pipe()
        wait, self._go = os.pipe()

        def story(daemon: Inside) -> None:
            scenario.prepare(daemon)
            threads = {thread.name: thread.native_id for thread in threading.enumerate()}
            threads["MainThread"] = os.getpid()  # Python still has the parent's number here
            os.write(tell, json.dumps(threads).encode() + b"\n")
            os.read(wait, 1)
            if then is None:
                scenario.deed(daemon)
            else:
                then(scenario, daemon)

        self.pid = in_a_child(lambda: scenario.run("s", story))
        os.close(tell)
        os.close(wait)
        with os.fdopen(told) as said:
            self.threads: dict[str, int] = json.loads(said.readline() or "{}")
        assert self.threads, "the child died before the deed"

    def thread(self, name: str) -> int:
        """The one of that name, or another of its pool: pools begin threads as they need them, and not always as many."""
        pool = name.rpartition("_")[0]
        return self.threads.get(name) or next(number for other, number in self.threads.items() if other.startswith(pool))

    def go(self) -> int:
        """Its wait status, once it has ended."""
        os.write(self._go, b"!")
        os.close(self._go)
        ended: list[int] = []

        def has_ended() -> bool:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            ended.extend([status] if pid else [])
            return bool(pid)

        try:
            wait_until(has_ended, timeout_s=HANG_S, every_s=0.002, what="the daemon to end")
        except AssertionError:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return HUNG
        return ended[0]

    def is_traced(self, thread: int) -> bool:
        status = pathlib.Path(f"/proc/{self.pid}/task/{thread}/status").read_text()
        return re.search(r"TracerPid:\t0$", status, re.MULTILINE) is None

    def traced(self, threads: list[int], *options: str) -> int:
        """`go` under strace, attached to these threads and no other."""
        targets = [option for thread in threads for option in ("-p", str(thread))]
        with (
            tempfile.TemporaryFile("w+") as said,
            subprocess.Popen(["strace", "-qq", *options, *targets], stderr=said) as tracer,
        ):

            def is_attached() -> bool:
                assert tracer.poll() is None, f"strace ended: {said.seek(0)} {said.read()}"
                return all(map(self.is_traced, threads))

            try:
                wait_until(is_attached, what="strace to attach", every_s=0.002)
                return self.go()
            finally:
                tracer.wait(10)


def staged(
    kind: type[Scenario], folder: pathlib.Path, then: Callable[[Scenario, Inside], None] | None = None
) -> tuple[Scenario, Staged]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    scenario = kind(folder)
    scenario.ack.touch()
    return scenario, Staged(scenario, then)


# ---- the enumeration


def points(kind: type[Scenario], folder: pathlib.Path) -> Iterator[Point]:
    """Every call of the deed, found by watching one run to its end."""
    _, child = staged(kind, folder)
    names = {number: name for name, number in child.threads.items() if not name.startswith("story")}
    trace = folder / "trace"
    status = child.traced(list(names), "-o", str(trace), "-e", f"trace={','.join(CALLS)}", "-e", "signal=none")
    assert status == 0, "the deed failed without being killed"
    seen = Counter(re.findall(r"^(\d+) +(\w+)\(", trace.read_text(), re.MULTILINE))
    for (thread, call), count in sorted(seen.items()):
        yield from (Point(names[int(thread)], call, number) for number in range(1, count + 1))


def kill_at(kind: type[Scenario], folder: pathlib.Path, point: Point) -> Found:
    scenario, child = staged(kind, folder)
    inject = f"inject={point.call}:signal=SIGKILL:when={point.number}"
    status = child.traced([child.thread(point.thread)], "-o", os.devnull, "-e", f"trace={point.call}", "-e", inject)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    wrongs = [] if killed or status == 0 else [f"the daemon ended with {status}"]
    return Found(point, killed, wrongs + told_by_a_child(lambda: aftermath(scenario)))


def aftermath(scenario: Scenario, *, resumed: Collection[str] = ()) -> list[str]:
    """What is wrong with the store as it lies, after a start, and after the same deed again. `resumed` may lie in ingest/."""
    wrongs = [f"before the start: {wrong}" for wrong in visible_wrongs(scenario.store)]
    wrongs += wrongs_after_restart(scenario.store, scenario.promises())
    scenario.run("s2", scenario.again)
    wrongs += [f"after the same again: {wrong}" for wrong in wrongs_after_restart(scenario.store, scenario.promises())]
    return wrongs + [f"ingest/ still holds {name}" for name in litter(scenario.store) if name not in resumed]


def is_page_of_the_index(point: Point) -> bool:
    """SQLite's own writes: by far the most calls, and the ones that it is itself tested for."""
    return point.thread.startswith("index-writer") and point.call == "pwrite64"


def main() -> None:
    kind, folder, stride = SCENARIOS[sys.argv[1]], pathlib.Path(sys.argv[2]), int(sys.argv[3])
    with kind.serving(folder):
        chosen = [
            point for point in points(kind, folder / "watch") if not is_page_of_the_index(point) or point.number % stride == 0
        ]
        found = [kill_at(kind, folder / "kill", point) for point in chosen]
    print(json.dumps([asdict(one) for one in found]))


if __name__ == "__main__":
    main()
