"""Patterns: globs as in huggingface_hub; equal selections are equal values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotshelf_shared.errors import InvalidRequest
from hotshelf_shared.patterns import EVERYTHING, MAX_PATTERN_BYTES, MAX_PATTERNS, Patterns

globs = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10), max_size=6)


@pytest.mark.parametrize(
    ("allow", "ignore", "wanted", "unwanted"),
    [
        (None, None, ["a", "b/c.bin"], []),
        (["*.safetensors"], None, ["w.safetensors", "unet/w.safetensors"], ["w.bin", "w.safetensors.index"]),
        ("*.json", None, ["a.json", "x/y/a.json"], ["a.txt"]),
        (["unet/"], None, ["unet/a", "unet/b/c"], ["unet", "vae/unet/a", "unet2/a"]),
        (["unet/*"], ["*.bin"], ["unet/a"], ["unet/a.bin", "vae/a"]),
        (None, ["*.bin", "vae/"], ["unet/a"], ["a.bin", "vae/b/c"]),
        (["w?.safetensors"], None, ["w1.safetensors"], ["w12.safetensors"]),
        (["[ab].txt"], None, ["a.txt"], ["c.txt", "[ab].txt"]),
        (["*.JSON"], None, ["a.JSON"], ["a.json"]),
        ([], None, [], ["a"]),
        (["*"], ["*"], [], ["a"]),
    ],
)
def test_which_files_are_wanted(allow: object, ignore: object, wanted: list[str], unwanted: list[str]) -> None:
    patterns = Patterns.parse(allow, ignore)
    assert [path for path in wanted + unwanted if patterns.selects(path)] == wanted


def test_no_patterns_is_every_file_and_false() -> None:
    assert Patterns.parse() == EVERYTHING
    assert not EVERYTHING
    assert EVERYTHING.selects("anything/at all")


def test_an_empty_allow_list_is_a_filter_that_leaves_nothing() -> None:
    assert Patterns.parse([])
    assert Patterns.parse([]) != EVERYTHING


@given(globs, globs, st.randoms(use_true_random=False))
def test_order_and_repetition_make_no_difference(allow: list[str], ignore: list[str], random: object) -> None:
    again = Patterns.parse(allow[::-1] + allow, ignore + ignore[::-1])
    assert again == Patterns.parse(allow, ignore)
    assert hash(again) == hash(Patterns.parse(allow, ignore))


@given(globs, globs)
def test_parsing_what_was_parsed_changes_nothing(allow: list[str], ignore: list[str]) -> None:
    once = Patterns.parse(allow, ignore)
    assert Patterns.parse(once.allow, once.ignore) == once


@given(globs, globs, st.text(max_size=20))
def test_a_file_that_is_selected_is_allowed_and_not_ignored(allow: list[str], ignore: list[str], path: str) -> None:
    selected = Patterns.parse(allow, ignore).selects(path)
    assert selected == (Patterns.parse(allow).selects(path) and Patterns.parse(None, ignore).selects(path))


@pytest.mark.parametrize(
    "value",
    [5, True, [5], [""], "", [None], [["*"]], ["x" * (MAX_PATTERN_BYTES + 1)], [str(n) for n in range(MAX_PATTERNS + 1)]],
)
@pytest.mark.parametrize("field", ["allow_patterns", "ignore_patterns"])
def test_what_is_no_list_of_globs_is_refused_by_its_fields_name(field: str, value: object) -> None:
    if field == "ignore_patterns" and value == "":
        return
    with pytest.raises(InvalidRequest, match=field):
        Patterns.parse(value, None) if field == "allow_patterns" else Patterns.parse(None, value)


def test_the_most_patterns_are_kept() -> None:
    assert len(Patterns.parse([str(n) for n in range(MAX_PATTERNS)]).allow or ()) == MAX_PATTERNS


def test_a_glob_made_to_backtrack_is_answered_at_once() -> None:
    assert not Patterns.parse(["*a" * 200 + "b"]).selects("a" * 1_000)
