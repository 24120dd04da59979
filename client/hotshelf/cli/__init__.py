"""The command line: one module per group of verbs, gathered in one `click` group.

Everything machine-readable goes to stdout, everything for eyes (progress, notes, errors) to stderr. The exit code of a
failure is its error's.
"""

from __future__ import annotations

from typing import NoReturn

from hotshelf.cli import (
    baking,
    build,
    compile_cache,
    consumers,
    daemon,
    demo,
    index,
    leasing,
    linking,
    looking,
    shelf,
    truss,
    turning,
    worker,
)
from hotshelf.cli.verb import hotshelf

__all__ = ["hotshelf", "run"]

_GROUPS = (
    leasing,
    shelf,
    looking,
    turning,
    daemon,
    index,
    baking,
    build,
    compile_cache,
    consumers,
    linking,
    truss,
    worker,
    demo,
)
for group in _GROUPS:
    for verb in group.VERBS:
        hotshelf.add_command(verb)


def run() -> NoReturn:
    """Exits: usage errors with 2, failed verbs with their error's code."""
    hotshelf.main(prog_name="hotshelf")
