"""Pipelines of unusual make: what they do to their components is done to nobody else's, and what they need is there."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest

import hotshelf
from hotshelf import PipelineCache
from tests.daemon_process import Daemon
from tests.pipelines import tiny
from tests.pipelines.conftest import Library, client_of, draw, source, wanted

pytestmark = pytest.mark.torch


@pytest.fixture
def own_shelf(make_daemon: Callable[..., Daemon], library: Library) -> Daemon:
    return make_daemon(roots=[str(library.root)], revalidate_s=3600)


def served(pipe: Any) -> str:
    return str(hotshelf.explain(pipe)["served_from"])


def assert_same_weights(ours: Any, plain: Any) -> None:
    import torch

    def weights(pipe: Any) -> dict[str, Any]:
        parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}

    mine, theirs = weights(ours), weights(plain)
    assert mine.keys() == theirs.keys()
    wrong = [key for key in theirs if mine[key].dtype != theirs[key].dtype or not torch.equal(mine[key], theirs[key])]
    assert wrong == []


# ---- AnimateDiff makes a UNet of its own, out of the base's and a motion adapter


def motion(library: Library, seed: int) -> pathlib.Path:
    folder = library.root / f"motion-{seed}"
    return folder if folder.exists() else tiny.motion_adapter(folder, seed=seed)


def animated(adapter: pathlib.Path) -> dict[str, Any]:
    return {"pipeline_class": "AnimateDiffPipeline", "components": {"motion_adapter": source(adapter)}}


def plainly_animated(library: Library, adapter: pathlib.Path, **options: Any) -> Any:
    import diffusers

    with tiny.quiet():
        part = diffusers.MotionAdapter.from_pretrained(adapter, **options)
        return diffusers.AnimateDiffPipeline.from_pretrained(library.sd, motion_adapter=part, **options)


def test_a_unet_that_a_pipeline_made_of_the_base_s_own_is_served_to_no_other(
    library: Library, load: Any, cache: PipelineCache
) -> None:
    one, two = motion(library, 1), motion(library, 2)
    for adapter, came_from in ((one, "built"), (one, "memory"), (two, "built"), (one, "memory"), (two, "memory")):
        pipe = load(library.sd, **animated(adapter))
        assert served(pipe) == came_from
        assert_same_weights(pipe, plainly_animated(library, adapter))
    assert draw(load(library.sd)) == library.plain_image(library.sd)
    assert_same_weights(load(library.sd, **animated(one)), plainly_animated(library, one))


def test_fused_it_is_served_to_no_other_either(library: Library, load: Any) -> None:
    text = [(library.lora("sd", "diffusers", seed=3, components=("text_encoder",)), 0.7)]
    for _ in range(2):
        pipe = load(library.sd, text, lora_mode="fuse", **animated(motion(library, 1)))
        assert type(pipe.unet).__name__ == "UNetMotionModel"
    assert draw(load(library.sd)) == library.plain_image(library.sd)


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {}, {"lora": True}])
def test_a_unet_that_a_pipeline_made_is_kept_as_what_it_became(
    library: Library, own_shelf: Daemon, options: dict[str, Any]
) -> None:
    import torch

    style = wanted([(library.lora("sd", "diffusers", seed=1), 0.7)])
    order: dict[str, Any] = {"dtype": options["dtype"]} if "dtype" in options else {}
    order |= {"loras": style, "lora_mode": "fuse"} if "lora" in options else {}
    pipes = [
        hotshelf.load_pipeline(
            source(library.sd), **order, **animated(motion(library, 1)), snapshot=True, cache=cache, client=client_of(own_shelf)
        )
        for cache in (None, None, PipelineCache())
    ]
    assert [served(pipe) for pipe in pipes] == ["built", "snapshot", "snapshot"]
    plain = plainly_animated(library, motion(library, 1), torch_dtype=getattr(torch, order.get("dtype", "float32")))
    for pipe in pipes:
        assert_same_weights(pipe, pipes[0] if "lora" in options else plain)


# ---- a variant's files have names of their own


@pytest.mark.parametrize("saved", [{}, {"max_shard_size": "60KB"}])
@pytest.mark.parametrize("more", ["", "the plain weights too"])
def test_a_variant_with_fused_loras_is_kept_so_that_it_can_be_loaded(
    library: Library, own_shelf: Daemon, saved: dict[str, Any], more: str
) -> None:
    folder = library.root / f"sd-fp16-{len(saved)}-{len(more)}"
    if more:
        tiny.save_to("sd", folder, seed=5, **saved)
    tiny.save_to("sd", folder, variant="fp16", **saved)
    loras = wanted([(library.lora("sd", "diffusers", seed=1), 0.7)])
    order: dict[str, Any] = {"loras": loras, "lora_mode": "fuse", "client": client_of(own_shelf)}
    sources: list[dict[str, Any]] = [{"variant": "fp16", "snapshot": True}, {"variant": "fp16"}]
    pipes = [hotshelf.load_pipeline(source(folder), **order, **one, cache=None) for one in sources]
    assert [served(pipe) for pipe in pipes] == ["built", "snapshot"]
    assert draw(pipes[1]) == draw(pipes[0])
    key = hotshelf.explain(pipes[0])["pipeline_key"]
    by_key = hotshelf.load_pipeline(f"pipeline:{key}", client=client_of(own_shelf), cache=None)
    assert_same_weights(by_key, pipes[0])


# ---- several ControlNets are one component in several folders


def test_every_one_of_several_controlnets_is_there(library: Library, load: Any, own_shelf: Daemon) -> None:
    import torch

    base = library.base("sd-two-controlnets")
    for _ in range(2):
        pipe = load(base)
        assert len(pipe.controlnet.nets) == 2
        assert_same_weights(pipe, library.plain(base))
    loras = wanted([(library.lora("sd", "diffusers", seed=1), 0.7)])
    fused = {"loras": loras, "lora_mode": "fuse"}
    for order in ({"dtype": "bfloat16"}, fused):
        pipes = [
            hotshelf.load_pipeline(source(base), **order, snapshot=True, cache=None, client=client_of(own_shelf))
            for _ in range(2)
        ]
        assert [served(pipe) for pipe in pipes] == ["built", "snapshot"]
        assert_same_weights(pipes[1], pipes[0] if order is fused else library.plain(base, torch_dtype=torch.bfloat16))


def test_controlnets_that_differ_in_the_second_are_not_the_same(library: Library, load: Any, tmp_path: pathlib.Path) -> None:
    base = library.base("sd-two-controlnets")
    other = library.base("sd-two-controlnets", seed=1)
    second = other / "controlnet_1" / "diffusion_pytorch_model.safetensors"
    second.write_bytes((other / "controlnet" / "diffusion_pytorch_model.safetensors").read_bytes())
    load(base)
    assert_same_weights(load(other), library.plain(other))


# ---- weights that torch derives from others


def test_normed_weights_are_shared_too(library: Library, load: Any) -> None:
    base = library.base("audio")
    plain = library.plain(base)

    def listen(pipe: Any) -> bytes:
        import torch

        options = {"num_inference_steps": 2, "audio_end_in_s": 1.0, "generator": torch.Generator().manual_seed(7)}
        pipe.set_progress_bar_config(disable=True)
        with tiny.quiet():
            return bytes(pipe("a red cat", output_type="np", **options).audios.tobytes())

    pipes = [load(base), load(base)]
    assert [served(pipe) for pipe in pipes] == ["built", "memory"]
    for pipe in pipes:
        assert_same_weights(pipe, plain)
    try:
        expected = listen(plain)
    except ImportError:  # its sampler wants torchsde, which is not everywhere
        return
    assert [listen(pipe) for pipe in pipes] == [expected, expected]
