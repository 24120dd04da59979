"""SIGKILL at every system call of a start: `… recovering recover|migrate FOLDER STRIDE`. Prints a JSON report like `killing`.

The store that is opened was left by an earlier version, or has everything to be put right: no index, a blob that rotted
away, one that nobody knows, one whose bytes are wrong, half a deletion, half a download.
"""

from __future__ import annotations

import abc
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import tarfile
from collections import Counter
from dataclasses import asdict

from hotshelf_daemon import app
from hotshelf_daemon.config import load
from hotshelf_daemon.metrics import Metrics
from tests import objects
from tests.faults.invariants import litter
from tests.faults.killing import (
    CALLS,
    Found,
    Point,
    Staged,
    aftermath,
    in_a_child,
    told_by_a_child,
)  # fmt: skip
from tests.faults.scenarios import Acquire, Scenario
from tests.upgrades.writing import KEPT, PINNED, STORES


class Left(Acquire):
    """A store as a daemon that is about to start finds it."""

    #: Whether what lies in ingest/ is a download to be gone on with, rather than litter.
    resumes = False

    @abc.abstractmethod
    def ruin(self) -> None:
        """Leaves it."""


class Outdated(Left):
    """As the earliest version left it, killed: its index is to be migrated, its download to be kept."""

    resumes = True

    def ruin(self) -> None:
        with tarfile.open(min(STORES.glob("*.tar.xz"))) as archive:
            archive.extractall(self.folder, filter="tar")
        for tree in (KEPT, PINNED):
            manifest = objects.manifest_of(tree)
            files = [{"path": path, "digest": str(entry.digest)} for path, entry in manifest.items()]
            self.promise({"revision": str(manifest.revision), "files": files})


class Ruined(Left):
    """What was acknowledged is `kept`, and a bundle; `deed` was held once and has lost a blob."""

    def ruin(self) -> None:
        def live() -> None:
            def story(daemon: object) -> None:
                self.prepare(daemon)  # type: ignore[arg-type]
                daemon.release(daemon.acquire("deed"))  # type: ignore[attr-defined]
                self.promise(daemon.share("cpu/9f2c", b"a compile cache"))  # type: ignore[attr-defined]

            self.run("s", story)

        told_by_a_child(live)
        blobs = self.store / "blobs" / "sha256"
        next(blob for blob in sorted(blobs.glob("*/*")) if blob.stat().st_size == 70_001).unlink()
        for name, data in (("ab" * 32, b"wrong"), ("cd" * 32, b"")):
            (blobs / name[:2]).mkdir(exist_ok=True)
            (blobs / name[:2] / name).write_bytes(data)
        (self.store / "trash" / "half").mkdir()
        (self.store / "trash" / "half" / "a").write_bytes(b"x")
        (self.store / "ingest" / ("f" * 32)).write_bytes(b"x" * 1_000)
        shutil.rmtree(self.store / "index")


STARTS: dict[str, type[Left]] = {"recover": Ruined, "migrate": Outdated}


class Starting(Staged):
    """A child that waits for `go` and then opens the store as a daemon does when it starts."""

    def __init__(self, scenario: Scenario) -> None:
        wait, self._go = os.pipe()

        def work() -> None:
            os.read(wait, 1)
            shelf = app.open_shelf(load({"store": str(scenario.store), "listen": ""}, {}).settings, Metrics("test"))
            shelf.index.close()
            shelf.layout.close()

        self.pid = in_a_child(work)
        os.close(wait)
        self.threads = {"MainThread": self.pid}


def staged(folder: pathlib.Path, ruin: Left) -> tuple[Scenario, Starting]:
    """A copy of the ruin, and who is about to recover it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    scenario = Acquire(folder)
    shutil.copytree(ruin.store, scenario.store, symlinks=True)
    shutil.copytree(ruin.origin, scenario.origin, dirs_exist_ok=True)
    # The leases named the folder of the first daemon's origin; the promises are about the store alone.
    shutil.copy(ruin.ack, scenario.ack)
    return scenario, Starting(scenario)


def points(folder: pathlib.Path, ruin: Left) -> list[Point]:
    _, child = staged(folder, ruin)
    trace = folder / "trace"
    argv = ("-f", "-o", str(trace), "-e", f"trace={','.join(CALLS)}", "-e", "signal=none")
    assert child.traced([child.pid], *argv) == 0
    seen = Counter(re.findall(r"^(\d+) +(\w+)\(", trace.read_text(), re.MULTILINE))
    most: Counter[str] = Counter()
    for (_, call), count in seen.items():
        most[call] = max(most[call], count)
    return [Point("any", call, number) for call, count in sorted(most.items()) for number in range(1, count + 1)]


def kill_at(folder: pathlib.Path, ruin: Left, point: Point) -> Found:
    scenario, child = staged(folder, ruin)
    inject = f"inject={point.call}:signal=SIGKILL:when={point.number}"
    status = child.traced([child.pid], "-f", "-o", os.devnull, "-e", f"trace={point.call}", "-e", inject)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    wrongs = [] if killed or status == 0 else [f"the start ended with {status}"]
    after = told_by_a_child(lambda: aftermath(scenario, resumed=litter(ruin.store) if ruin.resumes else ()))
    # What the ruin shows before it is recovered is the ruin's.
    return Found(point, killed, wrongs + [wrong for wrong in after if not wrong.startswith("before the start")])


def main() -> None:
    kind, folder, stride = STARTS[sys.argv[1]], pathlib.Path(sys.argv[2]), int(sys.argv[3])
    (folder / "ruin").mkdir(parents=True)
    ruin = kind(folder / "ruin")
    ruin.ack.touch()
    ruin.ruin()
    chosen = [
        point
        for point in points(folder / "watch", ruin)
        if point.call not in ("pwrite64", "write") or point.number % stride == 0
    ]
    print(json.dumps([asdict(kill_at(folder / "kill", ruin, point)) for point in chosen]))


if __name__ == "__main__":
    main()
