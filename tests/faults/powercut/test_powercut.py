"""I3: what was acknowledged survives a power cut, on real file systems; and the same daemon without syncs does not."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from tests.faults.powercut.rounds import ROOT
from tests.faults.soaking import SEED, in_rounds
from tests.servers.child import clean_environment

pytestmark = [pytest.mark.root, pytest.mark.needs("mount", "umount", "unshare")]
each_file_system = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.needs(f"mkfs.{kind}")) for kind in ("ext4", "xfs")]
)


def cut(folder: pathlib.Path, kind: str, *flags: str, cuts: int, seed: str) -> list[str | None]:
    """What the check said after each cut."""
    apart = ["unshare", "--mount", "--propagation", "private"]
    argv = [*apart, sys.executable, "-m", "tests.faults.powercut.rounds", str(folder), kind, str(cuts), seed, *flags]
    done = subprocess.run(argv, cwd=ROOT, env=clean_environment(), check=False, capture_output=True, text=True, timeout=3_000)
    assert done.returncode == 0, done.stderr[-4_000:]
    said: list[str | None] = json.loads(done.stdout)
    return said


@each_file_system
def test_what_was_acknowledged_survives_a_power_cut(tmp_path: pathlib.Path, kind: str) -> None:
    assert cut(tmp_path, kind, cuts=30, seed=SEED) == [None] * 30, f"TEST_SEED={SEED}"


@each_file_system
def test_without_syncs_a_power_cut_loses_what_was_acknowledged(tmp_path: pathlib.Path, kind: str) -> None:
    (said,) = cut(tmp_path, kind, "--without-sync", cuts=1, seed="control")
    assert said is not None
    assert "the acknowledged" in said


@pytest.mark.soak
@pytest.mark.timeout(7_200)
@each_file_system
def test_what_was_acknowledged_survives_many_power_cuts(tmp_path: pathlib.Path, kind: str) -> None:
    def many(cuts: int, seed: str) -> None:
        assert cut(tmp_path, kind, cuts=cuts, seed=seed) == [None] * cuts, f"TEST_SEED={seed}"

    in_rounds(f"power cuts {kind}", 250, 25, many)
