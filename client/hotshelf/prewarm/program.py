"""What a worker runs, in Python's own words: ``-m MODULE ARGS`` or ``SCRIPT ARGS``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from hotshelf_shared.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Program:
    """`name` is a module's when `is_module`, else the path of a script, folder or zip file."""

    name: str
    args: tuple[str, ...]
    is_module: bool

    @classmethod
    def parse(cls, words: Sequence[str]) -> Self | None:
        """None when there are no words. Raises InvalidRequest."""
        given = list(words)
        if given[:1] == ["--"]:
            del given[0]
        if not given:
            return None
        if given[0] == "-m":
            if len(given) < 2:
                raise InvalidRequest("-m goes with the name of a module", hint="Write: hotshelf worker -m MODULE ARGS")
            return cls(given[1], tuple(given[2:]), is_module=True)
        if given[0].startswith("-m"):
            return cls(given[0][2:], tuple(given[1:]), is_module=True)
        if given[0].startswith("-"):
            raise InvalidRequest(f"there is no option {given[0]!r}", hint="Write: hotshelf worker -m MODULE ARGS, or a SCRIPT.")
        return cls(given[0], tuple(given[1:]), is_module=False)

    @property
    def words(self) -> list[str]:
        return [*(["-m"] if self.is_module else []), self.name, *self.args]


def python(*words: str) -> list[str]:
    """The command line of another Python like this one: the same interpreter with the same options."""
    import subprocess  # here, because a stub that finds a zygote does without

    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *options, *(["-u"] if is_unbuffered() else []), *words]


def is_unbuffered() -> bool:
    """As ``-u`` has it, which is in no flag."""
    return bool(getattr(sys.__stdout__, "write_through", False))
