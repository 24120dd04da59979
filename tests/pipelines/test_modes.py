"""LoRAs in their three modes, with one scale or one per component; read once, and never onto somebody else's pipeline."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

import hotshelf
from hotshelf import PipelineCache
from hotshelf.errors import InvalidRequest
from tests.pipelines import tiny
from tests.pipelines.conftest import Library, draw

pytestmark = pytest.mark.torch
BOTH = ("unet", "text_encoder")


def plain(library: Library, loras: list[tuple[pathlib.Path, Any]]) -> Any:
    """With weights that may be mappings."""
    pipe = library.plain(library.sd, [(path, 1.0) for path, _ in loras])
    pipe.set_adapters([f"plain{number}" for number in range(len(loras))], [scale for _, scale in loras])
    return pipe


def test_a_scale_for_each_component(library: Library, load: Any) -> None:
    style = library.lora("sd", "kohya", seed=6, components=BOTH)
    loras = [(style, {"unet": 0.8, "text_encoder": 0.0}), (library.lora("sd", "diffusers", seed=1), 0.5)]
    pipe = load(library.sd, loras)
    assert draw(pipe) == draw(plain(library, loras))
    assert hotshelf.explain(pipe)["loras"][0]["scale"] == {"unet": 0.8, "text_encoder": 0.0}
    keys = {
        hotshelf.explain(load(library.sd, [(style, scale)]))["pipeline_key"]
        for scale in (0.8, {"unet": 0.8}, {"unet": 0.8, "text_encoder": 0.0}, {"text_encoder": 0, "unet": 0.8})
    }
    assert len(keys) == 3
    fused = load(library.sd, loras, lora_mode="fuse")
    reference = plain(library, loras)
    with tiny.quiet():
        reference.fuse_lora()
        reference.unload_lora_weights()
    assert draw(fused) == draw(reference)


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        ({"unet": float("nan")}, "no finite number"),
        ({"unet": "much"}, "no finite number"),
        ({}, "component"),
        ({"vae": 0.5}, "scale for 'vae'"),
        ({"transformer": 0.5}, "scale for 'transformer'"),
    ],
)
def test_a_scale_for_what_is_not_there_or_is_no_number_is_refused(library: Library, load: Any, scale: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        load(library.sd, [(library.lora("sd", "kohya", seed=6, components=BOTH), scale)])
    assert refused.value.hint


def test_what_was_read_once_is_not_read_again(
    library: Library, load: Any, cache: PipelineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    one, two = [(library.lora("sd", "kohya", seed=5), 0.7)], [(library.lora("sd", "diffusers", seed=1), 0.4)]
    for loras in (one, two):
        load(library.sd, loras)
    assert len(cache.adapters) == 2
    assert cache.adapters.bytes_held > 0

    def nothing_is_read(*_: object, **__: object) -> None:
        raise AssertionError("a file was read")

    monkeypatch.setattr(safetensors.torch, "load_file", nothing_is_read)
    for loras in (one, two, [*one, *two], one):
        pipe = load(library.sd, loras)
        assert hotshelf.explain(pipe)["served_from"] == "memory"
    monkeypatch.undo()
    assert draw(pipe) == library.plain_image(library.sd, one)


def test_changing_an_adapter_s_weights_by_hand_reaches_no_other_pipeline(library: Library, load: Any) -> None:
    loras = [(library.lora("sd", "diffusers", seed=1), 0.7)]
    changed, other = load(library.sd, loras), load(library.sd, loras)
    changed.unet.load_state_dict({key: value * 0 for key, value in changed.unet.state_dict().items()})
    assert draw(other) == library.plain_image(library.sd, loras)
    assert draw(load(library.sd, loras)) == library.plain_image(library.sd, loras)


def test_no_more_adapter_bytes_are_kept_than_asked_for(library: Library, load: Any) -> None:
    files = [library.lora("sd", "diffusers", seed=seed) for seed in range(3)]
    bounded = PipelineCache(max_adapter_bytes=files[0].stat().st_size * 2)
    for file in files:
        assert draw(load(library.sd, [(file, 0.5)], cache=bounded)) == library.plain_image(library.sd, [(file, 0.5)])
    assert len(bounded.adapters) == 2
    none = PipelineCache(max_adapter_bytes=0)
    load(library.sd, [(files[0], 0.5)], cache=none)
    assert len(none.adapters) == 0


def test_ten_variants_cost_their_adapters_and_no_more(library: Library, load: Any, cache: PipelineCache) -> None:
    pipes = [load(library.sd, [(library.lora("sd", "diffusers", seed=seed), 0.5)]) for seed in range(10)]
    storages: dict[int, int] = {}
    for pipe in pipes:
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            for tensor in (*part.parameters(), *part.buffers()):
                storages[tensor.data_ptr()] = tensor.nbytes
    adapters = sum(library.lora("sd", "diffusers", seed=seed).stat().st_size for seed in range(10))
    assert sum(storages.values()) <= 1.1 * (cache.bytes_held + adapters)


def test_hotswap_exchanges_a_lora_in_place(library: Library, load: Any) -> None:
    import torch

    one, two = library.lora("sd", "diffusers", seed=1), library.lora("sd", "kohya", seed=5)
    pipe, bystander = load(library.sd, [(one, 0.7)], lora_mode="hotswap"), load(library.sd, [(one, 0.7)])

    def close(pipe: Any, loras: Any) -> bool:
        expected = torch.frombuffer(bytearray(library.plain_image(library.sd, loras)), dtype=torch.float32)
        drawn = torch.frombuffer(bytearray(draw(pipe)), dtype=torch.float32)
        return torch.allclose(drawn, expected, atol=2e-2)

    assert close(pipe, [(one, 0.7)])
    layers = [id(module) for module in pipe.unet.modules()]
    for lora, scale in ((two, 0.4), (one, 1.0), (two, 0.9)):
        hotshelf.swap_lora(pipe, {"path": str(lora), "scale": scale})
        assert close(pipe, [(lora, scale)])
        assert not close(pipe, [])
    assert [id(module) for module in pipe.unet.modules()] == layers, "nothing that was compiled would be stale"
    assert hotshelf.explain(pipe)["loras"][0]["path"] == str(two)
    assert draw(bystander) == library.plain_image(library.sd, [(one, 0.7)])
    assert draw(load(library.sd)) == library.plain_image(library.sd)


def test_a_compiled_pipeline_stays_compiled_when_its_lora_is_swapped(
    library: Library, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    one, two = library.lora("sd", "diffusers", seed=1), library.lora("sd", "kohya", seed=5)
    pipe = load(library.sd, [(one, 0.7)], lora_mode="hotswap")
    pipe.unet.compile(backend="eager")  # the tracing is what is asked about, not the code that comes of it
    drawn = [draw(pipe), draw(pipe)]
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    for lora, scale in ((two, 0.4), (one, 0.9)):
        hotshelf.swap_lora(pipe, {"path": str(lora), "scale": scale})
        drawn.append(draw(pipe))
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_hotswap_refuses_what_cannot_be_swapped(library: Library, load: Any) -> None:
    text = library.lora("sd", "kohya", seed=6, components=BOTH)
    with pytest.raises(InvalidRequest, match="text-encoder"):
        load(library.sd, [(text, 0.7)], lora_mode="hotswap")
    one = library.lora("sd", "diffusers", seed=1)
    with pytest.raises(InvalidRequest, match="position 1"):
        hotshelf.swap_lora(load(library.sd, [(one, 0.7)], lora_mode="hotswap"), str(one), position=1)
    with pytest.raises(InvalidRequest, match="not made by"):
        hotshelf.swap_lora(object(), str(one))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="does not fit"):
        hotshelf.swap_lora(load(library.sd, [(one, 0.7)], lora_mode="hotswap"), str(library.lora("sd-wide", "kohya")))


def test_a_lora_that_does_not_fit_is_no_better_fused(library: Library, load: Any) -> None:
    misfit = [(library.lora("sd-wide", "kohya"), 1.0)]
    for mode in hotshelf_modes():
        with pytest.raises(InvalidRequest, match=r"does not fit StableDiffusionPipeline: .*down_blocks\.1\.attentions\.0"):
            load(library.sd, misfit, lora_mode=mode)
    assert draw(load(library.sd)) == library.plain_image(library.sd)


def hotshelf_modes() -> tuple[str, ...]:
    return ("adapters", "fuse", "hotswap")


# ---- pins and pressure


def test_a_pinned_pipeline_s_weights_stay(library: Library, load: Any) -> None:
    small = PipelineCache(max_pipelines=1)
    first, other = load(library.sd, cache=small), library.base("sd", seed=1)
    small.pin(first)
    load(other, cache=small)
    assert hotshelf.explain(load(library.sd, cache=small))["served_from"] == "memory"
    assert hotshelf.explain(load(other, cache=small))["served_from"] == "built"
    small.unpin(first)
    load(other, cache=small)
    assert hotshelf.explain(load(library.sd, cache=small))["served_from"] == "built"
    with pytest.raises(hotshelf.errors.NotFound):
        PipelineCache().pin(first)


def test_when_memory_is_short_the_least_recently_used_goes_and_it_is_tried_again(
    library: Library, load: Any, cache: PipelineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from diffusers import DiffusionPipeline

    load(library.sd), load(library.base("sd", seed=1))
    assert len(cache) == 2
    real, failures = DiffusionPipeline.from_pretrained.__func__, [torch.OutOfMemoryError("no room"), None]  # type: ignore[attr-defined]

    def short(cls: Any, *args: Any, **options: Any) -> Any:
        if (failure := failures.pop(0) if failures else None) is not None:
            raise failure
        return real(cls, *args, **options)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(short))
    pipe = load(library.base("sd", seed=2))
    assert len(cache) == 2, "one went, one came"
    assert hotshelf.explain(load(library.base("sd", seed=1)))["served_from"] == "memory"
    assert draw(pipe) == library.plain_image(library.base("sd", seed=2))
    failures[:] = [torch.OutOfMemoryError("no room")] * 9
    with pytest.raises(hotshelf.errors.HotshelfError, match="not enough memory on cpu"):
        load(library.base("sd", seed=3))


def test_offload_without_an_accelerator_is_a_sentence(library: Library, load: Any) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is an accelerator")
    with pytest.raises(InvalidRequest, match="offload='model' does not work here"):
        load(library.sd, offload="model")
    assert draw(load(library.sd)) == library.plain_image(library.sd)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["model", "sequential", "group"])
def test_an_offloaded_pipeline_draws(library: Library, load: Any, mode: str) -> None:
    assert draw(load(library.sd, offload=mode))
