"""Recipes: the same recipe has the same key everywhere, and nothing that is no recipe has one."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import InvalidRequest
from hotshelf_shared.recipe import FORMAT_VERSION, LoraRecipe, Recipe

BASE, STYLE = Digest.of(b"base"), Digest.of(b"style")
digests = st.binary(max_size=8).map(Digest.of)
names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
scales = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-1000, 1000)
scalars = st.none() | st.booleans() | st.integers(-(1 << 62), 1 << 62) | scales | names
plain = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=5
)
recipes = st.builds(
    Recipe,
    base=digests,
    loras=st.lists(st.builds(LoraRecipe, digests, scales | st.dictionaries(names, scales, max_size=3)), max_size=3).map(tuple),
    lora_mode=names,
    dtype=st.none() | names,
    variant=st.none() | names,
    components=st.dictionaries(names, digests, max_size=3),
    single_file=st.none() | st.dictionaries(names, plain, max_size=3),
    quantization=st.none() | st.dictionaries(names, plain, max_size=3),
)


@given(recipes)
def test_a_recipe_that_travels_as_json_is_itself_and_has_its_key(recipe: Recipe) -> None:
    got = Recipe.parse(json.loads(json.dumps(recipe.to_json())))
    assert got.to_json() == recipe.to_json()
    assert got.key == recipe.key
    assert got == Recipe.parse(recipe.to_json())


def test_the_key_is_what_it_always_was() -> None:
    """It names what other machines and other days have built: it may never change for the same recipe."""
    recipe = Recipe(base=BASE, loras=(LoraRecipe(STYLE, {"unet": 1}),), dtype="float16", components={"vae": STYLE})
    assert (
        recipe.canonical()
        == (
            f'{{"base":"{BASE}","components":{{"vae":"{STYLE}"}},"dtype":"float16","format":1,"lora_mode":"adapters",'
            f'"loras":[["{STYLE}",{{"unet":1.0}}]],"quantization":null,"single_file":null,"variant":null}}'
        ).encode()
    )
    assert recipe.key == "601929a98dd617b01a4768eecc9bb16d1eea8997f08d8d2d7af629943cc82ea1"


def test_whole_scales_and_their_fractions_are_the_same_scale() -> None:
    one = Recipe.parse({"base": BASE, "format": 1, "loras": [[STYLE, 1]]})
    assert one == Recipe.parse({"base": BASE, "format": 1, "loras": [[STYLE, 1.0]]})
    assert one.key == Recipe(base=BASE, loras=(LoraRecipe(STYLE),)).key


def test_what_has_a_default_may_be_left_out() -> None:
    assert Recipe.parse({"base": BASE, "format": FORMAT_VERSION}) == Recipe(base=BASE)


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"format": 2},
        {"format": "1"},
        {"format": True},
        {"format": None},
        {"base": None},
        {"base": "sha256:12"},
        {"base": 7},
        {"loras": {}},
        {"loras": [STYLE]},
        {"loras": [[STYLE]]},
        {"loras": [[STYLE, 1.0, 2.0]]},
        {"loras": [["style", 1.0]]},
        {"loras": [[STYLE, "1"]]},
        {"loras": [[STYLE, True]]},
        {"loras": [[STYLE, None]]},
        {"loras": [[STYLE, math.nan]]},
        {"loras": [[STYLE, math.inf]]},
        {"loras": [[STYLE, 10**400]]},
        {"loras": [[STYLE, {"unet": math.nan}]]},
        {"loras": [[STYLE, {"unet": {"down": 1}}]]},
        {"loras": [[STYLE, {"": 1.0}]]},
        {"loras": [[STYLE, 1.0]] * 257},
        {"lora_mode": None},
        {"lora_mode": ""},
        {"lora_mode": 7},
        {"dtype": ["float16"]},
        {"dtype": "x" * 201},
        {"dtype": "float16\x1b[2J"},
        {"variant": 16},
        {"variant": "\ud800"},
        {"components": []},
        {"components": {"vae": "main"}},
        {"components": {"": BASE}},
        {"single_file": "a.yaml"},
        {"single_file": {"x": math.nan}},
        {"single_file": {"x": 1 << 70}},
        {"single_file": {"\ud800": 1}},
        {"quantization": [1]},
        {"quantization": {"x": "y" * 300_000}},
    ],
)
def test_what_is_no_recipe_is_an_invalid_request(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        Recipe.parse({**Recipe(base=BASE).to_json(), **change})


@pytest.mark.parametrize("body", [None, [], "recipe", 1, {}])
def test_what_is_no_object_is_no_recipe(body: object) -> None:
    with pytest.raises(InvalidRequest):
        Recipe.parse(body)


def test_bottomless_nesting_is_refused() -> None:
    deep: Any = {}
    for _ in range(100):
        deep = {"x": deep}
    with pytest.raises(InvalidRequest):
        Recipe.parse({**Recipe(base=BASE).to_json(), "single_file": deep})


def test_the_order_of_loras_is_part_of_the_recipe_and_that_of_names_is_not() -> None:
    first, second = LoraRecipe(STYLE), LoraRecipe(BASE)
    assert Recipe(base=BASE, loras=(first, second)).key != Recipe(base=BASE, loras=(second, first)).key
    parts = {"vae": STYLE, "unet": BASE}
    assert Recipe(base=BASE, components=parts).key == Recipe(base=BASE, components=dict(reversed(parts.items()))).key
