"""Whether processors are what keeps bytes from coming faster: more connections would only take them from each other.

Formats: proc_stat(5), and the kernel's documentation of the cpu controllers of cgroup v2 and v1.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from hotshelf_shared import cgroups

#: The machine is busy when less than this share of its time is left, and we when we use as much as this of all of it:
#: what others keep busy is no fewer bytes for us.
LEFT = 0.3
OURS = 0.5
#: Of what we may use, where that is less than the machine.
USED = 0.9

_NAMES: dict[cgroups.Version, tuple[str, ...]] = {1: ("cpu.cfs_quota_us", "cpu.cfs_period_us"), 2: ("cpu.max",)}


class Processors:
    """Not thread-safe. `root` is where ``proc`` and ``sys`` are, `used` our processor time in seconds."""

    def __init__(
        self, *, root: str = "/", now: Callable[[], float] = time.monotonic, used: Callable[[], float] = time.process_time
    ) -> None:
        self._root, self._now, self._used = root, now, used
        self._count = os.cpu_count() or 1
        self._ours = min([len(os.sched_getaffinity(0)), *_quotas(root)])
        self._at = self._look()

    def are_busy(self) -> bool:
        """Since this was asked the last time."""
        before, self._at = self._at, self._look()
        passed, used, left, spent = (there - here for there, here in zip(self._at, before, strict=True))
        if used >= USED * self._ours * passed:
            return passed > 0
        return left < LEFT * spent and used >= OURS * self._count * passed

    def _look(self) -> tuple[float, float, float, float]:
        """The time, what we used, and of the machine's the idle and all, in seconds and in ticks."""
        ticks = [int(one) for line in cgroups.lines(self._root, "proc/stat")[:1] for one in line.split()[1:9]]
        return self._now(), self._used(), sum(ticks[3:5]), sum(ticks)


def _quotas(root: str) -> Iterator[float]:
    """Processors that each control group above this process may use."""
    for version, folder in cgroups.folders("cpu", root):
        said = [word for name in _NAMES[version] for line in cgroups.lines(root, f"{folder}/{name}") for word in line.split()]
        if len(said) == 2 and all(word.isdecimal() and int(word) for word in said):  # neither max nor -1
            yield int(said[0]) / int(said[1])
