"""One write writes less than it was asked to, at each of them: `… shortening SCENARIO FOLDER SAMPLE SEED`. Prints JSON.

strace cannot do this: it would report fewer bytes than were written, or bytes that never were. libfiu stands between Python,
SQLite and the C library (LD_PRELOAD, see `command`), and really writes less. The caller must be served all the same.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tests.faults.inside import Inside
from tests.faults.killing import aftermath, in_a_child, told_by_a_child
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.servers.child import clean_environment

PRELOAD = next((path for folder in ("/usr/lib/fiu", "/usr/local/lib/fiu")
                if (path := pathlib.Path(folder, "fiu_posix_preload.so")).exists()), None)  # fmt: skip
#: Every way to write that libfiu can cut short; what goes to sockets and pipes among them.
WRITES = tuple(f"posix/io/rw/{call}/reduce" for call in ("write", "pwrite", "writev", "pwritev"))
_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_uint)
)
_kept: list[object] = []


@dataclass(frozen=True, slots=True)
class Found:
    """What became of one run. `shortened` is False when the deed made fewer writes this time."""

    number: int
    shortened: bool
    wrongs: list[str]


def command(scenario: str, folder: pathlib.Path, sample: int, seed: str) -> tuple[list[str], dict[str, str]]:
    """How this module is run: its arguments and environment."""
    argv = [sys.executable, "-m", "tests.faults.shortening", scenario, str(folder), str(sample), seed]
    return argv, clean_environment(LD_PRELOAD=str(PRELOAD))


def counting(fails_at: int) -> Callable[[], int]:
    """Cuts the `fails_at`-th write from now on short; the answer says how many there have been."""
    fiu, seen = ctypes.CDLL("libfiu.so.0"), [0]

    @_Callback
    def decide(*_: Any) -> int:
        seen[0] += 1
        return int(seen[0] == fails_at)

    assert fiu.fiu_init(0) == 0
    for name in WRITES:
        assert fiu.fiu_enable_external(name.encode(), 1, None, 0, decide) == 0

    _kept.append(decide)  # libfiu calls it until this process ends, and ctypes does not keep it alive
    return lambda: seen[0]


def lived(scenario: Scenario, fails_at: int) -> int:
    """How many writes the deed made."""
    made: list[int] = []

    def story(daemon: Inside) -> None:
        scenario.prepare(daemon)
        count = counting(fails_at)
        scenario.deed(daemon)
        made.append(count())

    scenario.run("s", story)
    return made[0]


def shorten(kind: type[Scenario], folder: pathlib.Path, number: int) -> Found:
    folder.mkdir(parents=True)
    scenario, report = kind(folder), folder / "writes"
    scenario.ack.touch()
    _, status = os.waitpid(in_a_child(lambda: report.write_text(str(lived(scenario, number)))), 0)
    wrongs = [] if status == 0 else [f"the daemon, or the request, ended with {status}"]
    wrongs += told_by_a_child(lambda: aftermath(scenario))
    return Found(number, report.exists() and int(report.read_text()) >= number, wrongs)


def main() -> None:
    kind, folder, sample, seed = SCENARIOS[sys.argv[1]], pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    watched = folder / "watch"
    with kind.serving(folder):
        shorten(kind, watched, 0)
        chosen = [*range(1, int((watched / "writes").read_text()) + 1)]
        if sample:
            chosen = sorted(random.Random(seed).sample(chosen, min(sample, len(chosen))))
        found = [shorten(kind, folder / f"write-{number}", number) for number in chosen]
    print(json.dumps([asdict(one) for one in found]))


if __name__ == "__main__":
    main()
