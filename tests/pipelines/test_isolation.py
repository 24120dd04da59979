"""Using or changing one pipeline never changes another: weights are shared, nothing else is."""

from __future__ import annotations

import gc
import pathlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest

import hotshelf
from hotshelf import PipelineCache
from hotshelf.errors import InvalidRequest
from tests.pipelines.conftest import Library, Loras, draw
from tests.pipelines.together import at_once

pytestmark = pytest.mark.torch
TEXT = ("unet", "text_encoder")


def unload_and_load_another(pipe: Any, other: pathlib.Path) -> None:
    pipe.unload_lora_weights()
    pipe.load_lora_weights(str(other.parent), weight_name=other.name, adapter_name="mine")


def overwrite_weights(pipe: Any, _: pathlib.Path) -> None:
    import torch

    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.load_state_dict({key: torch.zeros_like(value) for key, value in module.state_dict().items()})


def merge_one_module(pipe: Any, _: pathlib.Path) -> None:
    pipe.unet.fuse_lora()


def fuse_through_another_class(pipe: Any, _: pathlib.Path) -> None:
    """`from_pipe` hands the very modules to a pipeline that hotshelf has never seen."""
    from diffusers import StableDiffusionImg2ImgPipeline

    StableDiffusionImg2ImgPipeline.from_pipe(pipe).fuse_lora()


def change_scheduler_in_place(pipe: Any, _: pathlib.Path) -> None:
    pipe.scheduler.register_to_config(num_train_timesteps=10, steps_offset=3)
    pipe.scheduler.alphas_cumprod.zero_()
    pipe.scheduler.betas.zero_()


def swap_scheduler(pipe: Any, _: pathlib.Path) -> None:
    from diffusers import EulerDiscreteScheduler

    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)


def train(pipe: Any, _: pathlib.Path) -> None:
    """By hand, hence said beforehand."""
    from hotshelf.pipelines.sharing import own_weights

    own_weights(pipe.unet)
    for parameter in pipe.unet.parameters():
        parameter.data.mul_(0)


def add_tokens(pipe: Any, _: pathlib.Path) -> None:
    pipe.tokenizer.add_tokens(["red"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    pipe.text_encoder.get_input_embeddings().weight.data[-1] = 3.0


CHANGES: list[Callable[[Any, pathlib.Path], object]] = [
    lambda pipe, _: pipe.set_adapters(["lora_0"], [0.1]),
    lambda pipe, _: pipe.fuse_lora(),
    lambda pipe, _: pipe.fuse_lora(components=["unet"], lora_scale=0.3, safe_fusing=True),
    lambda pipe, _: (pipe.fuse_lora(), pipe.unfuse_lora()),
    lambda pipe, _: pipe.disable_lora(),
    lambda pipe, _: pipe.delete_adapters("lora_0"),
    lambda pipe, _: pipe.to(dtype=_half()),
    lambda pipe, _: pipe.unet.to(dtype=_half()),
    lambda pipe, _: pipe.enable_attention_slicing(),
    lambda pipe, _: pipe.vae.enable_tiling(),
    lambda pipe, _: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6),
    lambda pipe, _: pipe.unet.fuse_qkv_projections(),
    lambda pipe, _: pipe.unet.requires_grad_(False),
    lambda pipe, _: pipe.unet.to(memory_format=_channels_last()),
    unload_and_load_another, overwrite_weights, merge_one_module, fuse_through_another_class, change_scheduler_in_place,
    swap_scheduler, train, add_tokens,
]  # fmt: skip


def _half() -> Any:
    import torch

    return torch.float16


def _channels_last() -> Any:
    import torch

    return torch.channels_last


def test_no_change_to_one_reaches_another_nor_the_next(library: Library, load: Any, cache: PipelineCache) -> None:
    """The first pipeline is the one that was loaded from disk, the second the first memory hit: both are changed."""
    loras: Loras = [(library.lora("sd", "kohya", seed=6, components=TEXT), 0.7)]
    right, bare = library.plain_image(library.sd, loras), library.plain_image(library.sd)
    other = library.lora("sd", "diffusers", seed=1)
    witness: Any = None
    failures = []
    for number, change in enumerate(CHANGES):
        if number % 4 == 0:
            cache.clear()  # so that a pipeline loaded from disk is among the changed ones
            witness = None
        changed = load(library.sd, loras)
        witness = witness or load(library.sd, loras)
        change(changed, other)
        if (draw(witness), draw(load(library.sd, loras))) != (right, right):
            failures.append((number, change.__name__))
    assert draw(load(library.sd)) == bare
    assert failures == []


def test_changed_pipelines_still_do_what_plain_ones_do(library: Library, load: Any) -> None:
    loras: Loras = [(library.lora("sd", "diffusers", seed=1), 0.7)]
    changes: list[Callable[[Any], object]] = [
        lambda pipe: pipe.fuse_lora(),
        lambda pipe: (pipe.fuse_lora(), pipe.unfuse_lora()),
        lambda pipe: swap_scheduler(pipe, library.sd),
    ]
    for change in changes:
        ours, plain = load(library.sd, loras), library.plain(library.sd, loras)
        change(ours), change(plain)
        assert draw(ours) == draw(plain)


def storages(pipes: Iterable[Any]) -> int:
    """Bytes of every distinct piece of memory that the pipelines' weights lie in."""
    held: dict[int, int] = {}
    for pipe in pipes:
        for part in pipe.components.values():
            if hasattr(part, "parameters"):
                for tensor in (*part.parameters(), *part.buffers()):
                    held[tensor.data_ptr()] = max(tensor.nbytes, held.get(tensor.data_ptr(), 0))
    return sum(held.values())


def test_eight_threads_with_eight_lora_sets_draw_their_solo_images_and_share_the_base(library: Library, load: Any) -> None:
    sets: list[Loras] = [
        [(library.lora("sd", layout, seed=seed, components=parts), 0.5 + seed / 20)]
        for seed in (1, 2)
        for layout in ("diffusers", "kohya")
        for parts in (("unet",), TEXT)
    ]
    solo = [library.plain_image(library.sd, loras) for loras in sets]
    assert len(set(solo)) == 8

    def work(loras: Loras) -> tuple[Any, list[bytes]]:
        pipe = load(library.sd, loras)
        return pipe, [draw(pipe) for _ in range(2)]

    pipes, drawn = zip(*at_once([partial(work, loras) for loras in sets]), strict=True)
    assert list(drawn) == [[image, image] for image in solo]
    assert sorted(hotshelf.explain(pipe)["served_from"] for pipe in pipes) == ["built"] + ["memory"] * 7
    base = storages([library.plain(library.sd)])
    adapters = sum(path.stat().st_size for loras in sets for path, _ in loras)
    assert storages(pipes) <= 1.1 * (base + adapters)


def test_a_failure_half_way_changes_nothing(library: Library, load: Any, cache: PipelineCache) -> None:
    good: Loras = [(library.lora("sd", "kohya", seed=6, components=TEXT), 0.7)]
    before = load(library.sd, good)
    with pytest.raises(InvalidRequest):
        load(library.sd, [*good, (library.lora("sd-wide", "diffusers"), 1.0)])
    assert draw(load(library.sd, good)) == draw(before) == library.plain_image(library.sd, good)
    cache.clear()
    with pytest.raises(InvalidRequest):
        load(library.sd, [*good, (library.lora("sd-wide", "diffusers"), 1.0)])
    assert draw(load(library.sd)) == library.plain_image(library.sd)


def test_two_models_that_share_a_component_share_its_memory(library: Library, load: Any) -> None:
    import shutil

    other = library.root / "sd-sharing-a-vae"
    shutil.copytree(library.base("sd", seed=1), other)
    shutil.rmtree(other / "vae")
    shutil.copytree(library.sd / "vae", other / "vae")
    one, two = load(library.sd), load(other)
    assert [p.data_ptr() for p in one.vae.parameters()] == [p.data_ptr() for p in two.vae.parameters()]
    assert draw(two) == library.plain_image(other) != library.plain_image(library.sd)
    del one
    gc.collect()
    assert draw(two) == library.plain_image(other)
