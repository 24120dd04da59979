"""I3: what was acknowledged survives a power cut, on real file systems; and the same daemon without syncs does not."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys
import threading

import pytest

from tests.faults.volume import FLUSH_LOG, NO_FLUSH, mounted
from tests.servers.child import Child, clean_environment
from tests.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.needs("mount", "umount")]
each_file_system = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.needs(f"mkfs.{kind}")) for kind in ("ext4", "xfs")]
)
ROOT = pathlib.Path(__file__).parents[3]
CUTS = 3
MANY_CUTS = 30


def is_stopped(pid: int) -> bool:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZ"


def survive_a_cut(
    folder: pathlib.Path, kind: str, *, chance: random.Random, flags: tuple[str, ...] = (), how: int
) -> str | None:
    """What the check says against the store after one cut; None when every invariant held."""
    ack = folder / "ack"
    ack.write_text("")
    with mounted(folder, kind) as volume:
        env = clean_environment(ROOT=str(volume.path), ACK=str(ack))
        argv = [sys.executable, "-m", "tests.faults.powercut.writer", *flags]
        writer = Child(argv, log=folder / "writer.log", env=env, cwd=ROOT)
        try:
            promised = chance.randint(2, 8)
            writer.wait_ready(lambda: ack.read_text().count("\n") >= promised, timeout_s=60)
            threading.Event().wait(chance.random() * 0.1)  # the moment of the cut is the point of it
            writer.signal(signal.SIGSTOP)  # so that no acknowledgement races the cut
            wait_until(lambda: is_stopped(writer.pid), what="the writer to stop")
            volume.cut(how)
        finally:
            writer.kill()
        volume.unmount()
        volume.mount()
        check = [sys.executable, "-m", "tests.faults.powercut.check"]
        done = subprocess.run(check, env=env, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120)
        return None if done.returncode == 0 else done.stdout + done.stderr


def cut_again_and_again(folder: pathlib.Path, kind: str, *, cuts: int, chance: random.Random) -> None:
    for _ in range(cuts):
        assert survive_a_cut(folder, kind, chance=chance, how=chance.choice((FLUSH_LOG, NO_FLUSH))) is None


@each_file_system
def test_what_was_acknowledged_survives_a_power_cut(tmp_path: pathlib.Path, kind: str) -> None:
    cut_again_and_again(tmp_path, kind, cuts=CUTS, chance=random.Random(f"cut {kind}"))


@each_file_system
def test_without_syncs_a_power_cut_loses_what_was_acknowledged(tmp_path: pathlib.Path, kind: str) -> None:
    said = survive_a_cut(tmp_path, kind, chance=random.Random(kind), flags=("--without-sync",), how=NO_FLUSH)
    assert said is not None
    assert "acknowledged" in said


@pytest.mark.soak
@each_file_system
def test_what_was_acknowledged_survives_many_power_cuts(tmp_path: pathlib.Path, kind: str) -> None:
    cut_again_and_again(tmp_path, kind, cuts=MANY_CUTS, chance=random.Random(os.urandom(8)))
