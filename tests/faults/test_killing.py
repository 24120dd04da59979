"""I1 to I4: the daemon is killed at every system call of a commit and of an eviction, and the next start converges."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from tests.faults.recovering import STARTS
from tests.faults.scenarios import SCENARIOS
from tests.faults.soaking import in_rounds
from tests.servers.child import clean_environment

pytestmark = [pytest.mark.root, pytest.mark.needs("strace")]
ROOT = pathlib.Path(__file__).parents[2]
#: Of SQLite's page writes, only every so many-th in the short run.
STRIDE = 5
#: Calls without which the enumeration cannot have seen what it is about.
DURABLE = {"fsync", "renameat2", "symlinkat", "fdatasync", "pwrite64"}


@pytest.fixture
def scratch() -> Iterator[pathlib.Path]:
    """In memory where possible: a killed process loses nothing that it has written, wherever it wrote it."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = tempfile.mkdtemp(prefix="hs-", dir=base)
    yield pathlib.Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


def kill_everywhere(scenario: str, folder: pathlib.Path, *, stride: int) -> list[dict[str, object]]:
    work = "killing" if scenario in SCENARIOS else "recovering"
    argv = [sys.executable, "-m", f"tests.faults.{work}", scenario, str(folder), str(stride)]
    done = subprocess.run(argv, cwd=ROOT, env=clean_environment(), check=False, capture_output=True, text=True, timeout=3_600)
    assert done.returncode == 0, done.stderr[-4_000:]
    return json.loads(done.stdout)


def wrongs(found: list[dict[str, object]]) -> list[str]:
    return [f"{one['point']}: {wrong}" for one in found for wrong in one["wrongs"]]  # type: ignore[attr-defined]


def test_a_daemon_killed_anywhere_in_a_commit_leaves_a_store_that_the_next_one_puts_right(scratch: pathlib.Path) -> None:
    found = kill_everywhere("acquire", scratch, stride=STRIDE)
    assert wrongs(found) == []
    killed = {one["point"]["call"] for one in found if one["killed"]}  # type: ignore[index]
    assert killed >= DURABLE | {"unlinkat"}  # the second copy of what is held already
    assert sum(bool(one["killed"]) for one in found) >= 60


@pytest.mark.needs("nginx")
def test_a_daemon_killed_anywhere_between_a_network_and_a_commit_leaves_a_store_that_the_next_one_puts_right(
    scratch: pathlib.Path,
) -> None:
    found = kill_everywhere("fetch", scratch, stride=4 * STRIDE)
    assert wrongs(found) == []
    killed = {one["point"]["call"] for one in found if one["killed"]}  # type: ignore[index]
    assert killed >= DURABLE | {"splice"}


@pytest.mark.needs("nginx")
def test_a_daemon_killed_anywhere_in_taking_from_a_hub_s_cache_leaves_a_store_that_the_next_one_puts_right(
    scratch: pathlib.Path,
) -> None:
    found = kill_everywhere("adopt", scratch, stride=4 * STRIDE)
    assert wrongs(found) == []
    killed = {(one["point"]["call"], one["point"]["thread"].partition("_")[0]) for one in found if one["killed"]}  # type: ignore[index]
    assert killed >= {("pwrite64", "adopt"), ("fallocate", "adopt")}


@pytest.mark.needs("nginx")
def test_a_daemon_killed_while_a_folder_of_truss_s_turns_leaves_one_tree_or_the_other_there(scratch: pathlib.Path) -> None:
    found = kill_everywhere("cached", scratch, stride=4 * STRIDE)
    assert wrongs(found) == []
    killed = [one["point"]["call"] for one in found if one["killed"]]  # type: ignore[index]
    assert killed.count("rename") >= 2  # the commit below hub/, and the link


def test_a_daemon_killed_anywhere_in_an_eviction_leaves_a_store_that_the_next_one_puts_right(scratch: pathlib.Path) -> None:
    found = kill_everywhere("evict", scratch, stride=STRIDE)
    assert wrongs(found) == []
    assert sum(bool(one["killed"]) for one in found) >= 15


def test_a_daemon_killed_anywhere_in_laying_out_a_snapshot_leaves_a_store_that_the_next_one_puts_right(
    scratch: pathlib.Path,
) -> None:
    found = kill_everywhere("snapshot", scratch, stride=STRIDE)
    assert wrongs(found) == []
    killed = {one["point"]["call"] for one in found if one["killed"]}  # type: ignore[index]
    assert killed >= {"fsync", "renameat2", "symlinkat", "pwrite64"}


def test_a_daemon_killed_anywhere_in_a_hand_in_leaves_a_store_that_the_next_one_puts_right(scratch: pathlib.Path) -> None:
    found = kill_everywhere("bind", scratch, stride=STRIDE)
    assert wrongs(found) == []
    killed = {one["point"]["call"] for one in found if one["killed"]}  # type: ignore[index]
    assert killed >= DURABLE
    assert sum(bool(one["killed"]) for one in found) >= 60


def test_a_daemon_killed_anywhere_in_evicting_a_pipeline_leaves_a_store_that_the_next_one_puts_right(
    scratch: pathlib.Path,
) -> None:
    found = kill_everywhere("unbind", scratch, stride=STRIDE)
    assert wrongs(found) == []
    assert sum(bool(one["killed"]) for one in found) >= 15


def test_a_daemon_killed_anywhere_in_a_rollback_leaves_all_of_it_or_nothing(scratch: pathlib.Path) -> None:
    found = kill_everywhere("rollback", scratch, stride=STRIDE)
    assert wrongs(found) == []
    assert sum(bool(one["killed"]) for one in found) >= 15


def test_a_daemon_killed_anywhere_in_a_refresh_that_ends_a_rollback_leaves_all_of_it_or_nothing(scratch: pathlib.Path) -> None:
    found = kill_everywhere("refresh", scratch, stride=STRIDE)
    assert wrongs(found) == []
    assert sum(bool(one["killed"]) for one in found) >= 15


def test_a_daemon_killed_anywhere_in_a_hand_in_of_a_bundle_leaves_a_store_that_the_next_one_puts_right(
    scratch: pathlib.Path,
) -> None:
    found = kill_everywhere("bundle", scratch, stride=STRIDE)
    assert wrongs(found) == []
    killed = {one["point"]["call"] for one in found if one["killed"]}  # type: ignore[index]
    assert killed >= DURABLE
    assert sum(bool(one["killed"]) for one in found) >= 40


def test_a_daemon_killed_anywhere_in_evicting_a_bundle_leaves_a_store_that_the_next_one_puts_right(
    scratch: pathlib.Path,
) -> None:
    found = kill_everywhere("unbundle", scratch, stride=STRIDE)
    assert wrongs(found) == []
    assert sum(bool(one["killed"]) for one in found) >= 15


def test_a_daemon_killed_anywhere_in_a_recovery_leaves_a_store_that_the_next_one_puts_right(scratch: pathlib.Path) -> None:
    found = kill_everywhere("recover", scratch, stride=12)
    assert wrongs(found) == []
    assert sum(bool(one["killed"]) for one in found) >= 30


def test_a_daemon_killed_anywhere_in_migrating_an_index_leaves_a_store_that_the_next_one_puts_right(
    scratch: pathlib.Path,
) -> None:
    found = kill_everywhere("migrate", scratch, stride=3)
    assert wrongs(found) == []
    assert sum(bool(one["killed"]) for one in found) >= 30


@pytest.mark.soak
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("scenario", [*SCENARIOS, *STARTS])
def test_no_write_of_the_index_is_a_bad_moment_either(scratch: pathlib.Path, scenario: str) -> None:
    def everywhere(_count: int, _seed: str) -> int:
        found = kill_everywhere(scenario, scratch, stride=1)
        assert wrongs(found) == []
        return sum(bool(one["killed"]) for one in found)

    in_rounds(f"kills in {scenario}", 1, 1, everywhere)
