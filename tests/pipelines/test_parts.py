"""Components from elsewhere, other pipeline classes over the same components, checkpoints in one file."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import pytest

import hotshelf
from hotshelf import PipelineCache
from hotshelf.errors import InvalidRequest, UnsafeContent
from tests.daemon_process import Daemon
from tests.pipelines import ldm, tiny
from tests.pipelines.conftest import Library, client_of, draw, source, wanted

pytestmark = pytest.mark.torch


def served(pipe: Any) -> str:
    return str(hotshelf.explain(pipe)["served_from"])


def plain_with(library: Library, base: pathlib.Path, **parts: Any) -> bytes:
    import diffusers

    with tiny.quiet():
        return draw(diffusers.DiffusionPipeline.from_pretrained(base, **parts))


def test_another_vae_takes_the_place_of_the_base_s_own(library: Library, load: Any, cache: PipelineCache) -> None:
    from diffusers import AutoencoderKL

    other = library.base("sd", seed=1)
    expected = plain_with(library, library.sd, vae=AutoencoderKL.from_pretrained(other / "vae"))
    assert expected != library.plain_image(library.sd)
    for vae in ({"source": source(other), "subfolder": "vae"}, source(other / "vae"), str(other / "vae")):
        pipe = load(library.sd, components={"vae": vae})
        assert draw(pipe) == expected
    assert served(load(library.sd, components={"vae": source(other / "vae")})) == "memory"
    assert draw(load(library.sd)) == library.plain_image(library.sd)
    assert hotshelf.explain(pipe)["components"]["vae"]["source"] == str(other / "vae")


def test_a_folder_s_name_may_have_dots(library: Library, load: Any) -> None:
    other = library.base("sd", seed=1)
    folder = library.root / "sd.releases"
    shutil.copytree(other / "vae", folder / "v1.5" / "vae")
    expected = draw(load(library.sd, components={"vae": source(other / "vae")}))
    for where in (source(folder), str(folder)):
        pipe = load(library.sd, components={"vae": {"source": where, "subfolder": "v1.5/vae"}})
        assert draw(pipe) == expected != library.plain_image(library.sd)


def test_another_scheduler_makes_another_picture_and_shares_every_weight(library: Library, load: Any) -> None:
    from diffusers import EulerDiscreteScheduler

    folder = library.root / "euler"
    EulerDiscreteScheduler(beta_schedule="scaled_linear").save_pretrained(folder)
    load(library.sd)
    pipe = load(library.sd, components={"scheduler": source(folder)})
    assert served(pipe) == "memory"
    assert draw(pipe) == plain_with(library, library.sd, scheduler=EulerDiscreteScheduler.from_pretrained(folder))
    assert hotshelf.explain(pipe)["pipeline_key"] != hotshelf.explain(load(library.sd))["pipeline_key"]


def test_a_text_encoder_comes_with_its_tokenizer(library: Library, load: Any) -> None:
    from transformers import CLIPTextModel

    other = library.base("sd", seed=3)
    parts = {name: {"source": source(other), "subfolder": name} for name in ("text_encoder", "tokenizer")}
    expected = plain_with(library, library.sd, text_encoder=CLIPTextModel.from_pretrained(other / "text_encoder"))
    assert draw(load(library.sd, components=parts)) == expected != library.plain_image(library.sd)


def test_a_base_with_other_components_and_fused_loras_is_kept_as_a_whole(library: Library, own_shelf: Daemon) -> None:
    other, client = library.base("sd", seed=1), client_of(own_shelf)
    loras = [(library.lora("sd", "kohya", seed=5, components=("unet", "text_encoder")), 0.7)]
    order: dict[str, Any] = {
        "loras": wanted(loras), "lora_mode": "fuse", "components": {"vae": {"source": source(other), "subfolder": "vae"}},
        "snapshot": True, "client": client,
    }  # fmt: skip
    built = hotshelf.load_pipeline(source(library.sd), cache=None, **order)
    again = hotshelf.load_pipeline(source(library.sd), cache=PipelineCache(), **order)
    assert (served(built), served(again)) == ("built", "snapshot")
    assert draw(again) == draw(built)


def test_img2img_is_another_class_over_the_same_weights(library: Library, load: Any) -> None:
    load(library.sd)
    pipe = load(library.sd, pipeline_class="StableDiffusionImg2ImgPipeline")
    assert type(pipe).__name__ == "StableDiffusionImg2ImgPipeline"
    assert served(pipe) == "memory"
    from diffusers import StableDiffusionImg2ImgPipeline

    with tiny.quiet():
        plain = StableDiffusionImg2ImgPipeline.from_pretrained(library.sd)
    assert draw(pipe) == draw(plain)


def test_a_controlnet_joins_a_base_that_has_none(library: Library, load: Any) -> None:
    import torch
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    folder = library.root / "controlnet"
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = ControlNetModel.from_unet(library.model("sd").unet, conditioning_embedding_out_channels=(4, 8))
        for block in net.controlnet_down_blocks:
            torch.nn.init.normal_(block.weight)
    net.save_pretrained(folder)
    pipe = load(library.sd, components={"controlnet": source(folder)}, pipeline_class="StableDiffusionControlNetPipeline")
    with tiny.quiet():
        plain = StableDiffusionControlNetPipeline.from_pretrained(
            library.sd, controlnet=ControlNetModel.from_pretrained(folder)
        )
    drawn = []
    for one in (pipe, plain):
        one.set_progress_bar_config(disable=True)
        edges = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
        with tiny.quiet():
            images = one(
                "a red cat", image=edges, num_inference_steps=2, height=16, width=16, output_type="np",
                generator=torch.Generator().manual_seed(7),
            ).images  # fmt: skip
        drawn.append(images.tobytes())
    assert drawn[0] == drawn[1] != library.plain_image(library.sd)


# ---- one file


@pytest.fixture(scope="module")
def single(library: Library) -> pathlib.Path:
    path = library.root / "single.safetensors"
    path.write_bytes(ldm.checkpoint(library.plain(library.sd)))
    return path


def test_a_checkpoint_in_one_file_draws_what_its_folder_draws(
    library: Library, own_shelf: Daemon, single: pathlib.Path, cache: PipelineCache
) -> None:
    client = client_of(own_shelf)
    loras = [(library.lora("sd", "kohya", seed=5), 0.7)]
    order: dict[str, Any] = {"config": source(library.sd), "client": client, "snapshot": True}
    for chosen, cached, came_from in (
        ([], cache, "built"), (loras, cache, "memory"), (loras, PipelineCache(), "snapshot"), ([], None, "snapshot"),
    ):  # fmt: skip
        pipe = hotshelf.load_pipeline(source(single), loras=wanted(chosen), cache=cached, **order)
        assert served(pipe) == came_from
        assert draw(pipe) == library.plain_image(library.sd, chosen)
    fetched = {snapshot["sources"][0]: snapshot["files"] for snapshot in client.snapshots() if snapshot["sources"]}
    assert fetched[source(single)] == 1


def test_a_checkpoint_of_this_machine_needs_no_daemon(library: Library, single: pathlib.Path, tmp_path: pathlib.Path) -> None:
    nobody = hotshelf.Client(tmp_path / "no-daemon")
    pipe = hotshelf.load_pipeline(str(single), config=str(library.sd), client=nobody, cache=None, timeout=5)
    assert draw(pipe) == library.plain_image(library.sd)


@pytest.mark.parametrize("cached", [True, False])
def test_the_weights_are_the_checkpoint_s_also_when_the_folder_that_describes_it_has_others(
    library: Library, load: Any, single: pathlib.Path, *, cached: bool
) -> None:
    described = source(library.base("sd", seed=1))
    pipe = load(single, config=described, cache=PipelineCache() if cached else None)
    assert draw(pipe) == library.plain_image(library.sd)


def test_one_file_may_be_a_single_component(library: Library, load: Any) -> None:
    from diffusers import AutoencoderKL

    other = library.base("sd", seed=1)
    path = library.root / "vae-only.safetensors"
    shutil.copy(other / "vae" / "diffusion_pytorch_model.safetensors", path)
    expected = plain_with(library, library.sd, vae=AutoencoderKL.from_pretrained(other / "vae"))
    assert draw(load(library.sd, components={"vae": source(path)})) == expected


# ---- bad input


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"vae": "unet"}, "is a UNet2DConditionModel, and the vae of a StableDiffusionPipeline is a AutoencoderKL"),
        ({"unet": "vae"}, "is a AutoencoderKL, and the unet"),
        ({"text_encoder": "scheduler"}, "the text_encoder of a StableDiffusionPipeline is a"),
        ({"scheduler": "vae"}, "and the scheduler"),
        ({"transformer": "unet"}, "has no component 'transformer'"),
    ],
)
def test_a_component_of_a_class_that_does_not_fit_is_refused(
    library: Library, load: Any, parts: dict[str, str], says: str
) -> None:
    given = {name: {"source": source(library.base("sd", seed=1)), "subfolder": folder} for name, folder in parts.items()}
    with pytest.raises(InvalidRequest, match=says) as refused:
        load(library.sd, components=given)
    assert refused.value.hint
    assert draw(load(library.sd)) == library.plain_image(library.sd)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"components": {"vae": {"source": "s3://b/p", "folder": "vae"}}}, "unknown field 'folder'"),
        ({"components": {"vae": {"source": "s3://b/p", "subfolder": "../x"}}}, "no relative path"),
        ({"components": {"a b": "s3://b/p"}}, "no component's name"),
        ({"components": ["vae"]}, "components is a mapping"),
        ({"components": {"vae": 3}}, "is a source"),
        ({"components": {"vae": {}}}, "the source of vae is missing"),
        ({"pipeline_class": "os.system"}, "pipeline_class"),
        ({"offload": "disk"}, "offload 'disk'"),
        ({"device": "cpu", "device_map": "balanced"}, "exclude each other"),
        ({"quantization_config": 4}, "quantization_config"),
        ({"config": ""}, "config is missing"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_asked(
    options: dict[str, Any], says: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        hotshelf.load_pipeline("s3://b/m", **options, client=hotshelf.Client(tmp_path / "nobody"), timeout=0.1)
    assert refused.value.hint


def test_an_unknown_class_is_refused(library: Library, load: Any) -> None:
    with pytest.raises(InvalidRequest, match="knows no pipeline class 'StableDreams'"):
        load(library.sd, pipeline_class="StableDreams")


def test_a_single_file_says_what_it_wants_and_a_folder_wants_no_config(
    library: Library, load: Any, single: pathlib.Path
) -> None:
    with pytest.raises(InvalidRequest, match="is a single file") as refused:
        load(single)
    assert "config=" in refused.value.hint
    with pytest.raises(InvalidRequest, match="goes with a single-file checkpoint"):
        load(library.sd, config=source(library.sd))


def test_a_component_that_brings_code_is_refused(library: Library, load: Any, tmp_path: pathlib.Path) -> None:
    folder = library.root / "trojan-vae"
    shutil.copytree(library.sd / "vae", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    for where in (source(folder), str(folder)):
        with pytest.raises(UnsafeContent):
            load(library.sd, components={"vae": where})
    pickled = tmp_path / "vae.ckpt"
    pickled.write_bytes(b"\x80\x04.")
    with pytest.raises(UnsafeContent, match="no safetensors file"):
        load(library.sd, components={"vae": str(pickled)})


def test_a_folder_without_that_component_is_refused(library: Library, load: Any) -> None:
    with pytest.raises(hotshelf.errors.HotshelfError, match=r"nothing|no folder"):
        load(library.sd, components={"vae": {"source": source(library.sd), "subfolder": "decoder"}})
    with pytest.raises(InvalidRequest, match=r"no folder|cannot be built|does not say"):
        hotshelf.load_pipeline(str(library.sd), components={"vae": {"source": str(library.sd), "subfolder": "nothing"}})
