"""CATALOGUE.md is held against the tests: every fault is there once, none is silent, and whatever it names exists."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CATALOGUE = pathlib.Path(__file__).with_name("CATALOGUE.md").read_text()
FAULTS = 106
THREATS = 14
#: What may stand in a row instead of a test.
EXCUSE = "Cannot be made here: "
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table row, without heads and rulers."""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith(("|---", "| row |", "| threat |")):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def faults() -> list[list[str]]:
    return [*rows(CATALOGUE.partition("## Security")[0])]


def threats() -> list[list[str]]:
    return [*rows(CATALOGUE.partition("## Security")[2])]


@functools.cache
def named_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
    machines = {
        node.targets[0].id for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return frozenset(name for name in found | machines if name.startswith(("test_", "Test")))


def test_every_fault_of_the_catalogue_has_one_row() -> None:
    assert [int(row[0]) for row in faults()] == [*range(1, FAULTS + 1)]
    assert len(threats()) == THREATS


@pytest.mark.parametrize("row", [*faults(), *threats()], ids=lambda row: row[0])
def test_every_row_names_a_test_that_exists_or_says_why_there_is_none(row: list[str]) -> None:
    held = row[-1]
    named = _TEST.findall(held)
    assert named or held.startswith(EXCUSE), f"{row[0]} is silent: {held}"
    assert held.count("`") == 2 * len(named), f"{row[0]} names something that is no test"
    for path, name in named:
        assert name in named_in(path), f"{path} has no {name}"
