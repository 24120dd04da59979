"""Several power cuts in a row: `… rounds FOLDER ext4|xfs CUTS SEED [--without-sync]`. Prints what each check said, as JSON.

Runs in a mount namespace of its own (`unshare --mount`): a container that starts meanwhile would take a copy of the
mounts it sees, and a file system that is mounted anywhere cannot be brought back from its cut.
"""

from __future__ import annotations

import json
import pathlib
import random
import signal
import subprocess
import sys
import threading

from tests.faults.volume import FLUSH_LOG, NO_FLUSH, mounted
from tests.servers.child import Child, clean_environment
from tests.waiting import wait_until

ROOT = pathlib.Path(__file__).parents[3]


def is_stopped(pid: int) -> bool:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZ"


def survive_a_cut(folder: pathlib.Path, kind: str, *, chance: random.Random, flags: list[str]) -> str | None:
    """What the check says against the store after one cut; None when every invariant held."""
    ack = folder / "ack"
    ack.write_text("")
    with mounted(folder, kind) as volume:
        env = clean_environment(ROOT=str(volume.path), ACK=str(ack))
        writer_argv = [sys.executable, "-m", "tests.faults.powercut.writer", *flags]
        writer = Child(writer_argv, log=folder / "writer.log", env=env, cwd=ROOT)
        try:
            promised = chance.randint(2, 8)
            writer.wait_ready(lambda: ack.read_text().count("\n") >= promised, timeout_s=120)
            threading.Event().wait(chance.random() * 0.1)  # the moment of the cut is the point of it
            writer.signal(signal.SIGSTOP)  # so that no acknowledgement races the cut
            wait_until(lambda: is_stopped(writer.pid), what="the writer to stop")
            volume.cut(NO_FLUSH if flags else chance.choice((FLUSH_LOG, NO_FLUSH)))
        finally:
            writer.kill()
        volume.unmount()
        volume.mount()
        check = [sys.executable, "-m", "tests.faults.powercut.check"]
        done = subprocess.run(check, env=env, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120)
        volume.unmount()
        return None if done.returncode == 0 else done.stdout + done.stderr


def main() -> None:
    folder, kind, cuts, seed, *flags = sys.argv[1:]
    chance = random.Random(seed)
    said = [survive_a_cut(pathlib.Path(folder), kind, chance=chance, flags=flags) for _ in range(int(cuts))]
    print(json.dumps(said))


if __name__ == "__main__":
    main()
