"""What a process stands on besides its program: interpreter, rights, namespaces, limits, environment. Linux only."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from hotshelf.prewarm.program import is_unbuffered
from hotshelf_shared import __version__

#: Of /proc/self/status, in groups that a person has a word for.
_STATUS = {
    "the user or its groups": ("Uid", "Gid", "Groups"),
    "its privileges": ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"),
    "its processors": ("Cpus_allowed_list", "Mems_allowed_list"),
}


@dataclass(frozen=True, slots=True)
class Footing:
    """`circumstances` are kept by a name to say and a value to compare."""

    circumstances: Mapping[str, str]
    environment: Mapping[str, str]

    @classmethod
    def here(cls) -> Footing:
        """This process's, now."""
        return cls({**_interpreter(), **_rights(), **_limits()}, dict(os.environ))


def base_path() -> list[str]:
    """`sys.path` without the program's own folder."""
    return sys.path[0 if sys.flags.safe_path else 1 :]


def _interpreter() -> dict[str, str]:
    homes = [path for path in base_path() if os.path.basename(path) in ("site-packages", "dist-packages")]
    return {
        "the interpreter": f"{os.path.realpath(sys.executable)} {sys.prefix} {sys.version}",
        "the interpreter's options": f"{sys.flags} {sys._xoptions} {sys.warnoptions} {is_unbuffered()}",
        "the path of modules": repr(base_path()),
        "what is installed": repr([(path, _changed_at(path)) for path in homes]),
        "hotshelf": f"{__version__} {os.path.dirname(__file__)}",
    }


def _changed_at(path: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_mtime_ns
    return 0


def _rights() -> dict[str, str]:
    status = dict(line.split(":", 1) for line in _read("/proc/self/status").splitlines() if ":" in line)
    found = {name: repr([status.get(key, "").split() for key in keys]) for name, keys in _STATUS.items()}
    spaces = {space: _link(f"/proc/self/ns/{space}") for space in _names("/proc/self/ns")}
    return {**found, "its container": f"{spaces} {_link('/proc/self/root')}", "its control group": _read("/proc/self/cgroup")}


def _limits() -> dict[str, str]:
    kinds = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
    limits = {name: resource.getrlimit(getattr(resource, name)) for name in kinds}
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    return {"its limits": repr(limits), "its priority": f"{nice} {_read('/proc/self/oom_score_adj').strip()}"}


def _read(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
    return ""


def _link(path: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(path)
    return ""


def _names(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(os.listdir(path))
    return []
