"""One system call fails, at each that changes something: `… failing SCENARIO FOLDER SAMPLE SEED`. Prints a JSON report.

As in `killing`, but the daemon lives: the caller must be served or told a typed reason, the daemon must serve the same
request right after it, and the store must be in order before and after a start anew. SAMPLE is how many of the points are
tried, chosen by SEED; 0 is all of them.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from tests.daemon_process import Reply
from tests.faults.inside import Inside
from tests.faults.killing import Point, aftermath, points, staged, told_by_a_child
from tests.faults.scenarios import SCENARIOS, Scenario

_FULL = ("ENOSPC", "EDQUOT")
_INTERRUPTIBLE = {"fallocate", "fsync", "fdatasync", "ftruncate", "pwrite64", "splice", "write"}
_GROWING = {
    "fallocate",
    "fsync",
    "ftruncate",
    "mkdir",
    "mkdirat",
    "pwrite64",
    "renameat",
    "renameat2",
    "splice",
    "symlinkat",
    "write",
}


@dataclass(frozen=True, slots=True)
class Fault:
    point: Point
    error: str


@dataclass(frozen=True, slots=True)
class Found:
    """What became of one run: `told` is the code that the caller was given, None when it was served."""

    fault: Fault
    told: str | None
    wrongs: list[str]


def faults(kind: type[Scenario], folder: pathlib.Path) -> Iterator[Fault]:
    for point in points(kind, folder):
        if point.call == "write":
            continue  # to pipes and sockets that wake the loop: no disk is behind them
        yield Fault(point, "EIO")
        if point.call in _GROWING:
            yield from (Fault(point, error) for error in _FULL)
        if point.call in _INTERRUPTIBLE:
            yield Fault(point, "EINTR")


def fail_at(kind: type[Scenario], folder: pathlib.Path, fault: Fault) -> Found:
    """The deed under the fault, then once more without it."""
    report = folder.with_name("report")

    def then(scenario: Scenario, daemon: Inside) -> None:
        wrongs: list[str] = []
        told: str | None = None
        try:
            scenario.deed(daemon)
        except AssertionError:
            told = code_of(daemon.refusals[-1], wrongs)
            scenario.again(daemon)
        except OSError as error:
            wrongs.append(f"the daemon did not answer: {error!r}")
        report.write_text(json.dumps([told, wrongs]))

    report.unlink(missing_ok=True)
    scenario, child = staged(kind, folder, then)
    call, thread = fault.point.call, child.thread(fault.point.thread)
    inject = f"inject={call}:error={fault.error}:when={fault.point.number}"
    trace = folder / "trace"
    status = child.traced([thread], "-y", "-o", str(trace), "-e", f"trace={call}", "-e", inject, "-e", "signal=none")
    told, wrongs = json.loads(report.read_text()) if report.exists() else (None, [])
    if status:
        wrongs.append(f"the daemon, or the same request after the fault, ended with {status}")
    if call in ("fsync", "fdatasync"):
        wrongs += synced_again(trace.read_text())
    return Found(fault, told, wrongs + told_by_a_child(lambda: aftermath(scenario)))


def code_of(reply: Reply, wrongs: list[str]) -> str:
    """The code that a refusal gives. A defect, or a refusal that does not say what to do, is wrong."""
    problem = reply.body if isinstance(reply.body, dict) else {}
    if "unexpected" in problem.get("detail", "unexpected"):
        wrongs.append(f"the caller was told {reply.body}")
    if not problem.get("hint"):
        wrongs.append(f"the caller was not told what to do: {reply.body}")
    return str(problem.get("code"))


def synced_again(trace: str) -> list[str]:
    """Files that were synced again after a sync that failed: the kernel may have dropped their pages and report success."""
    failed = re.search(r"f(?:data)?sync\(\d+<([^>]*/ingest/[^>]*)>\)\s*= -1 E(?:IO|NOSPC|DQUOT)", trace)
    if failed is None:
        return []
    after = trace[failed.end() :]
    return [f"{failed[1]} was synced again"] if f"<{failed[1]}>" in after else []


def main() -> None:
    kind, folder, sample, seed = SCENARIOS[sys.argv[1]], pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    found = []
    with kind.serving(folder):
        chosen = [*faults(kind, folder / "watch")]
        if sample:
            chosen = random.Random(seed).sample(chosen, min(sample, len(chosen)))
        for fault in chosen:
            found.append(fail_at(kind, folder / "fail", fault))
            if os.environ.get("FAULTS_ALOUD"):
                print(found[-1], file=sys.stderr, flush=True)
    print(json.dumps([asdict(one) for one in found]))


if __name__ == "__main__":
    main()
