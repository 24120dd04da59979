"""The control groups of this process, of version 2 and of version 1's controllers: cgroups(7)."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from typing import Literal

Version = Literal[1, 2]


def folders(controller: str, root: str) -> Iterator[tuple[Version, str]]:
    """Below `root`, this process's group of the controller and those above it, as far as they are seen here: in a container
    perhaps its own alone, at the mount."""
    for line in lines(root, "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        version: Version = 1 if controllers else 2
        mount = f"sys/fs/cgroup/{controller}" if controllers else "sys/fs/cgroup"
        path = posixpath.normpath("/" + path.lstrip("/"))  # of two slashes normpath keeps both
        while True:
            yield version, f"{mount}{path}".rstrip("/")
            if path == "/":
                break
            path = posixpath.dirname(path)


def lines(root: str, path: str) -> list[str]:
    """Of a file; there are none where there is no such file."""
    try:
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []
