"""Images through hotshelf are those of plain diffusers on the same files, byte for byte, in any order of switching."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

import hotshelf
from hotshelf import PipelineCache
from tests.pipelines.conftest import Library, Loras, draw, source, wanted

pytestmark = pytest.mark.torch
UNET, TEXT = ("unet",), ("unet", "text_encoder")
DIT = ("transformer",)
TEXTS = ("unet", "text_encoder", "text_encoder_2")

#: Per pipeline, sets of (layout, components, seed, scale).
SETS: dict[str, dict[str, list[tuple[str, tuple[str, ...], int, float]]]] = {
    "sd": {
        "none": [],
        "diffusers": [("diffusers", UNET, 1, 0.7)],
        "diffusers with text encoder": [("diffusers", TEXT, 2, 1.0)],
        "old names with text encoder": [("diffusers-old", TEXT, 3, 0.5)],
        "attention processors": [("attn-procs", UNET, 4, 1.0)],
        "kohya": [("kohya", UNET, 5, 0.7)],
        "kohya with text encoder": [("kohya", TEXT, 6, 1.0)],
        "two": [("diffusers", UNET, 1, 0.7), ("kohya", TEXT, 6, 0.4)],
        "the same two in another order": [("kohya", TEXT, 6, 0.4), ("diffusers", UNET, 1, 0.7)],
        "three, one off, one backwards": [("diffusers", TEXT, 2, 0.0), ("kohya", UNET, 5, -0.5), ("attn-procs", UNET, 4, 1.5)],
        "the same one twice": [("kohya", UNET, 5, 0.7), ("kohya", UNET, 5, 0.2)],
        "scale 0": [("kohya", TEXT, 6, 0.0)],
    },
    "sdxl": {
        "none": [],
        "diffusers": [("diffusers", TEXTS, 1, 0.7)],
        "kohya": [("kohya-xl", TEXTS, 2, 1.0)],
        "kohya, backwards": [("kohya-xl", UNET, 3, -0.5)],
        "two": [("diffusers", UNET, 4, 0.3), ("kohya-xl", TEXTS, 2, 0.6)],
        "three": [("kohya-xl", UNET, 3, 0.5), ("diffusers", UNET, 4, 0.0), ("diffusers", TEXTS, 1, 0.9)],
    },
    "sd-img2img": {"none": [], "kohya": [("kohya", TEXT, 1, 0.8)]},
    **{
        shape: {
            "none": [],
            "diffusers": [("diffusers", DIT, 1, 0.8)],
            "backwards": [("diffusers", DIT, 2, -0.6)],
            "two": [("diffusers", DIT, 1, 0.8), ("diffusers", DIT, 2, 0.3)],
            "the same two in another order": [("diffusers", DIT, 2, 0.3), ("diffusers", DIT, 1, 0.8)],
            "three, one off": [("diffusers", DIT, 3, 0.0), ("diffusers", DIT, 2, 1.2), ("diffusers", DIT, 1, 0.1)],
        }
        for shape in ("sd3", "flux")
    },
}
CASES = [pytest.param(name, which, id=f"{name}: {which}") for name, sets in SETS.items() for which in sets]


@pytest.fixture(scope="module")
def one_cache() -> PipelineCache:
    """One for the module: every case but the first of a pipeline is a memory hit, after every other."""
    return PipelineCache(max_pipelines=None)


def loras_of(library: Library, name: str, which: str) -> Loras:
    return [
        (library.lora(name, layout, seed=seed, components=parts), scale) for layout, parts, seed, scale in SETS[name][which]
    ]


@pytest.mark.parametrize(("name", "which"), CASES)
def test_the_image_is_that_of_plain_diffusers(
    library: Library, client: hotshelf.Client, one_cache: PipelineCache, name: str, which: str
) -> None:
    base, loras = library.base(name), loras_of(library, name, which)
    pipe = hotshelf.load_pipeline(source(base), loras=wanted(loras), client=client, cache=one_cache)
    assert type(pipe) is type(library.plain(base))
    assert draw(pipe) == library.plain_image(base, loras)
    off = all(scale == 0 for _, scale in loras)
    assert (draw(pipe) == library.plain_image(base)) == off, "a LoRA that changes nothing proves nothing"


def test_switching_to_and_fro_leaves_no_trace(library: Library, load: Any) -> None:
    sets = [loras_of(library, "sd", which) for which in ("kohya with text encoder", "none", "two", "none")]
    for loras in [*sets, *reversed(sets)]:
        assert draw(load(library.sd, loras)) == library.plain_image(library.sd, loras)


def test_without_a_cache_the_image_is_the_same(library: Library, load: Any) -> None:
    loras = loras_of(library, "sd", "two")
    pipe = load(library.sd, loras, cache=None)
    assert draw(pipe) == library.plain_image(library.sd, loras)
    assert hotshelf.explain(pipe)["served_from"] == "built"


def test_null_components_stay_null(library: Library, load: Any) -> None:
    pipe = load(library.sd)
    assert pipe.safety_checker is None
    assert pipe.feature_extractor is None
    assert dict(pipe.config) | {"_name_or_path": ""} == dict(library.plain(library.sd).config) | {"_name_or_path": ""}


def test_half_precision_is_that_of_plain_diffusers(library: Library, load: Any) -> None:
    import torch

    pipes = [load(library.sd, dtype=torch.float16), load(library.sd, dtype="fp16")]
    ours, again, plain = (
        {
            f"{name}.{key}": value
            for name in ("unet", "vae", "text_encoder")
            for key, value in getattr(p, name).state_dict().items()
        }
        for p in (*pipes, library.plain(library.sd, torch_dtype=torch.float16))
    )
    assert list(ours) == list(plain)
    assert all(torch.equal(ours[key], plain[key]) and ours[key].dtype == plain[key].dtype for key in plain)
    assert all(torch.equal(again[key], plain[key]) for key in plain)
    assert hotshelf.explain(pipes[0])["dtype"] == "float16"


def test_files_of_this_machine_are_read_where_they_lie_and_the_daemon_never_hears_of_them(
    library: Library, tmp_path: pathlib.Path
) -> None:
    loras = loras_of(library, "sd", "two")
    nobody = hotshelf.Client(tmp_path / "no-daemon")
    pipe = hotshelf.load_pipeline(
        str(library.sd), loras=[{"path": str(path), "scale": scale} for path, scale in loras], client=nobody, timeout=5
    )
    assert draw(pipe) == library.plain_image(library.sd, loras)


def test_a_local_base_takes_loras_from_the_shelf_and_has_the_revision_it_has_there(
    library: Library, load: Any, client: hotshelf.Client, cache: PipelineCache
) -> None:
    loras = loras_of(library, "sd", "kohya")
    mixed = hotshelf.load_pipeline(str(library.sd), loras=wanted(loras), client=client, cache=cache)
    assert draw(mixed) == library.plain_image(library.sd, loras)
    assert hotshelf.explain(mixed)["revision"] == hotshelf.explain(load(library.sd))["revision"]


def test_a_folder_with_one_weight_file_is_a_lora(library: Library, load: Any, tmp_path: pathlib.Path) -> None:
    file = library.lora("sd", "kohya", seed=5)
    for folder in (library.root / "folder-lora", tmp_path / "local-lora"):
        folder.mkdir()
        (folder / "style.safetensors").write_bytes(file.read_bytes())
        (folder / "README.md").write_text("a style")
    at_home = hotshelf.load_pipeline(str(library.sd), loras=[str(tmp_path / "local-lora")])
    assert draw(load(library.sd, [(library.root / "folder-lora", 1.0)])) == draw(at_home)
