"""How results and failures are printed: ``human``, ``json`` or ``quiet``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from hotshelf_shared.errors import HotshelfError

FORMATS = ("human", "json", "quiet")
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


class Output:
    """One verb's output. Results go to stdout, notes and failures to stderr."""

    def __init__(self, output_format: str) -> None:
        self.format = output_format

    def result(self, body: Any, *, human: Iterable[str] = (), quiet: Iterable[str] = ()) -> None:
        """The same result, three ways: `body` for json, lines for the others."""
        if self.format == "json":
            print(json.dumps(body, indent=2, default=str, ensure_ascii=False))
            return
        for line in human if self.format == "human" else quiet:
            print(line)

    def note(self, text: str) -> None:
        """Something for the eyes only."""
        if self.format == "human":
            print(text, file=sys.stderr)

    def failed(self, error: HotshelfError) -> None:
        if self.format == "json":
            print(json.dumps(error.to_problem(), indent=2, default=str, ensure_ascii=False), file=sys.stderr)
            return
        print(f"hotshelf: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Aligned columns; nothing at all when there are no rows. Numbers go to the right."""
    body = [[_plain(cell) for cell in row] for row in rows]
    if not body:
        return []
    kinds = [all(_is_number(row[n]) for row in body) for n in range(len(head))]
    widths = [max(len(row[n]) for row in [list(head), *body]) for n in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        columns = zip(cells, widths, kinds, strict=True)
        return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in columns).rstrip()

    return [line([name.upper() for name in head]), *(line(row) for row in body)]


def size(count: float) -> str:
    """``6.9 GB``; decimal units, as disks and networks are sold."""
    for unit in _UNITS:
        if abs(count) < 1000 or unit == _UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def ago(seconds: float | None) -> str:
    """``12 s``, ``5 min``, ``3 h``, ``2 d``; nothing for what has no age."""
    if seconds is None:
        return ""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def short(revision: object) -> str:
    """A revision as people read it; every verb takes the long form."""
    return str(revision)[:19]


def named(sources: Iterable[str]) -> str:
    """The sources of a snapshot in a table's cell. A pipeline's key is cut as a revision is: `show` has it whole."""
    return ", ".join(one[:21] if one.startswith("pipeline:") else one for one in sources) or "-"


def _plain(cell: object) -> str:
    text = "" if cell is None else "yes" if cell is True else "" if cell is False else str(cell)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)  # names come from buckets


def _is_number(text: str) -> bool:
    first, _, unit = text.partition(" ")
    return not text or (first.replace(".", "", 1).isdigit() and unit in ("", *_UNITS))
