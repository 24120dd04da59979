"""Whether processors are the bound: the machine's, or what a group leaves of them, and only if it is we who use them."""

from __future__ import annotations

import os
import pathlib

import pytest

from hotshelf_daemon.ingest.processors import Processors

ALL = float(os.cpu_count() or 1)
UNDER = min(len(os.sched_getaffinity(0)), ALL)


class Machine:
    """Its clock, its ``/proc/stat`` and what we used; in seconds, with 100 ticks of each processor in one."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root, self.now, self.used, self.idle, self.busy = root, 100.0, 5.0, 1_000.0, 1_000.0
        self.write("proc/stat", self.stat)

    @property
    def stat(self) -> str:
        return f"cpu  {self.busy:.0f} 0 0 {self.idle:.0f} 0 0 0 0 0 0\ncpu0 1 1 1 1\n"

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def processors(self) -> Processors:
        return Processors(root=str(self.root), now=lambda: self.now, used=lambda: self.used)

    def passes(self, *, ours: float, others: float = 0) -> None:
        """A second in which so many processors were used."""
        self.now, self.used = self.now + 1, self.used + ours
        self.busy, self.idle = self.busy + 100 * (ours + others), self.idle + 100 * max(0, ALL - ours - others)
        self.write("proc/stat", self.stat)


@pytest.fixture
def machine(tmp_path: pathlib.Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_that_we_keep_busy_is_busy_and_was_not_before(machine: Machine) -> None:
    processors = machine.processors()
    machine.passes(ours=0.1 * ALL)
    assert not processors.are_busy()
    machine.passes(ours=0.8 * ALL)
    assert processors.are_busy()
    machine.passes(ours=0.1 * ALL)
    assert not processors.are_busy()


def test_what_others_keep_busy_is_not_our_bound(machine: Machine) -> None:
    processors = machine.processors()
    machine.passes(ours=0.2 * ALL, others=0.8 * ALL)
    assert not processors.are_busy()


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/pod/daemon\n", "sys/fs/cgroup/pod/cpu.max": "10000 100000\n",
         "sys/fs/cgroup/pod/daemon/cpu.max": "max 100000\n"},
        {"proc/self/cgroup": "0::/../..\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"},
        {"proc/self/cgroup": "5:cpu,cpuacct:/pod\n1:memory:/pod\n", "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "10000\n",
         "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
         "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
    ],
    ids=["of-a-group-above", "of-the-only-group-seen", "of-version-1"],
)  # fmt: skip
def test_a_quota_is_our_bound_on_an_idle_machine_too(machine: Machine, files: dict[str, str]) -> None:
    for path, text in files.items():
        machine.write(path, text)
    processors = machine.processors()
    machine.passes(ours=0.095)
    assert processors.are_busy()
    machine.passes(ours=0.05)
    assert not processors.are_busy()


@pytest.mark.parametrize("quota", ["max 100000", "-1 100000", "", "what", "10000 0"])
def test_no_quota_or_one_that_cannot_be_read_is_none(machine: Machine, quota: str) -> None:
    machine.write("proc/self/cgroup", "0::/\n")
    machine.write("sys/fs/cgroup/cpu.max", quota)
    processors = machine.processors()
    machine.passes(ours=0.5 * UNDER)
    assert not processors.are_busy()


def test_where_nothing_can_be_read_only_what_we_may_use_counts(machine: Machine) -> None:
    (machine.root / "proc/stat").unlink()
    processors = machine.processors()
    machine.now, machine.used = machine.now + 1, machine.used + 0.5 * UNDER
    assert not processors.are_busy()
    machine.now, machine.used = machine.now + 1, machine.used + UNDER
    assert processors.are_busy()


def test_asked_twice_at_once_it_says_no(machine: Machine) -> None:
    processors = machine.processors()
    assert not processors.are_busy()
