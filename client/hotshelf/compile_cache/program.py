"""Which model's code is calling, when nothing but the call says so.

Invariant: one name per process, as there is one inductor directory per process; whoever calls first gives it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Program:
    """`name` for people; `digest` of the source, so that changed code never meets what the old code compiled."""

    name: str
    digest: str


_first: dict[str, Program] = {}


def calling() -> Program:
    """The file of the first caller that is nobody's library; in a bare thread, the program that was started."""
    return _first.get("") or _first.setdefault("", of_file(_caller()))


def of_file(file: str) -> Program:
    """Of a file that is not there, an interactive session's say, there is no more than its name."""
    try:
        with open(file, "rb") as source:
            data = source.read()
    except OSError:
        data = b""
    return Program(os.path.basename(file).partition(".")[0] or "interactive", hashlib.sha256(data).hexdigest())


def _caller() -> str:
    """Whoever is left when ours and Python's modules are out; of those rather one that no package manager installed."""
    files = [*_callers(), str(getattr(sys.modules.get("__main__"), "__file__", None) or "")]
    installed = tuple(
        os.path.realpath(path) + os.sep for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    )
    return next((file for file in files if not os.path.realpath(file).startswith(installed)), files[0])


def _callers() -> Iterator[str]:
    """Empty for what is typed into an interpreter."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package != _PACKAGE and package not in sys.stdlib_module_names:
            yield str(frame.f_globals.get("__file__") or "")
        frame = frame.f_back
