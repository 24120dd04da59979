"""The command line: one module per group of verbs, gathered in one `click` group.

Everything machine-readable goes to stdout, everything for eyes (progress, notes, errors) to stderr. The exit code of a
failure is its error's.
"""

from __future__ import annotations

from typing import NoReturn

from hotshelf.cli import baking, build, consumers, daemon, demo, index, leasing, shelf, truss, turning, worker
from hotshelf.cli.verb import hotshelf

__all__ = ["hotshelf", "run"]

for group in (leasing, shelf, turning, daemon, index, baking, build, consumers, truss, worker, demo):
    for verb in group.VERBS:
        hotshelf.add_command(verb)


def run() -> NoReturn:
    """Exits: usage errors with 2, failed verbs with their error's code."""
    hotshelf.main(prog_name="hotshelf")
