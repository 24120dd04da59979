"""What a file of weights is, where it belongs, and what may be changed in somebody's folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hotshelf.linking.kinds import DIFFUSERS_VAE, Header, kind_of, read_header
from hotshelf.linking.links import Change, Deed, decide, decide_file, is_ours
from hotshelf.linking.shelved import Shelved
from hotshelf.linking.views import A1111, COMFYUI, flags, sorted_by_kind
from tests import objects

STORE = "/shelf"


def named(name: str, *files: str, is_lora: bool = False, **kinds: str) -> Shelved:
    """`kinds` by the file's name without its suffix."""
    path = f"{STORE}/names/{'loras' if is_lora else 'models'}/{name}"
    return Shelved(name, path, is_lora, files, {f"{stem}.safetensors": kind for stem, kind in kinds.items()})


def comfyui(*names: Shelved, **said: str) -> dict[str, str]:
    links = sorted_by_kind(names, COMFYUI, said).links
    return {path: target.removeprefix(f"{STORE}/names/") for path, target in links.items()}


# ---- kinds


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"], "checkpoints"),
        (["model.diffusion_model.joint_blocks.0.x", "text_encoders.clip_l.transformer.x"], "checkpoints"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "diffusion_models"),
        (["double_blocks.0.img_attn.qkv.weight", "final_layer.linear.weight"], "diffusion_models"),
        (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "diffusion_models"),
        (["lora_unet_down_blocks_0.lora_down.weight"], "loras"),
        (["unet.down_blocks.0.attentions.0.to_q.lora_A.weight"], "loras"),
        (["control_model.input_blocks.0.0.weight"], "controlnet"),
        (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "controlnet"),
        (["decoder.up_blocks.0.resnets.0.norm1.weight", "decoder.conv_in.weight"], DIFFUSERS_VAE),
        (["decoder.up.0.block.0.norm1.weight", "encoder.conv_in.weight"], "vae"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "text_encoders"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"], "text_encoders"),
        (["vision_model.encoder.layers.0.mlp.fc1.weight", "visual_projection.weight"], "clip_vision"),
        (["clip_l", "clip_g"], "embeddings"),
        (["weight"], None),
        ([], None),
    ],
)
def test_what_a_file_is_is_told_by_its_tensors(tensors: list[str], kind: str | None) -> None:
    assert kind_of(Header(frozenset(tensors))) == kind


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"ss_network_module": "networks.lora"}, "loras"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "loras"),
        ({"modelspec.architecture": "stable-diffusion-v1/textual-inversion"}, "embeddings"),
        ({"modelspec.architecture": "stable-diffusion-v1"}, None),
    ],
)
def test_or_by_what_its_maker_says(said: dict[str, str], kind: str | None) -> None:
    assert kind_of(Header(frozenset({"a"}), said)) == kind


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"PK\x03\x04", b"\xff" * 16),
        *((3).to_bytes(8, "little") + b"{x}", (2).to_bytes(8, "little") + b"[]"),
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
)
def test_what_is_no_safetensors_has_no_header(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(data)
    assert read_header(str(tmp_path / "f")) is None


def test_a_header_is_names_and_metadata_whatever_form_those_have(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(objects.tensors("a.b", ss_network_module="networks.lora"))
    assert read_header(str(tmp_path / "f")) == Header(
        frozenset({"a.b"}), {"format": "pt", "ss_network_module": "networks.lora"}
    )
    text = json.dumps({"__metadata__": "odd", "a": {}}).encode()
    (tmp_path / "f").write_bytes(len(text).to_bytes(8, "little") + text)
    assert read_header(str(tmp_path / "f")) == Header(frozenset({"a"}), {})


# ---- which link goes where


def test_a_single_file_is_a_checkpoint_and_a_lora_is_a_lora_unless_its_header_says_what_it_is() -> None:
    assert comfyui(named("sd15", "v1-5.safetensors")) == {"checkpoints/sd15.safetensors": "models/sd15/v1-5.safetensors"}
    assert comfyui(named("s", "x.safetensors", is_lora=True, x="vae")) == {"loras/s.safetensors": "loras/s/x.safetensors"}
    assert comfyui(named("v", "x.safetensors", x="vae")) == {"vae/v.safetensors": "models/v/x.safetensors"}


def test_a_pipeline_is_a_folder_and_its_parts_and_whole_precision_comes_first() -> None:
    parts = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model", "text_encoder_2/model")
    files = [f"{part}.safetensors" for part in parts] + ["unet/diffusion_pytorch_model.fp16.safetensors", "model_index.json"]
    assert comfyui(named("xl", *files)) == {
        "diffusers/xl": "models/xl",
        "diffusion_models/xl.safetensors": "models/xl/unet/diffusion_pytorch_model.safetensors",
        "vae/xl.safetensors": "models/xl/vae/diffusion_pytorch_model.safetensors",
        "text_encoders/xl.safetensors": "models/xl/text_encoder/model.safetensors",
        "text_encoders/xl_2.safetensors": "models/xl/text_encoder_2/model.safetensors",
    }
    half = named("half", "model_index.json", "transformer/diffusion_pytorch_model.fp16.safetensors")
    assert "diffusion_models/half.safetensors" in comfyui(half)


def test_parts_in_several_files_and_shards_are_no_single_file() -> None:
    shards = [f"transformer/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert comfyui(named("flux", "model_index.json", *shards)) == {"diffusers/flux": "models/flux"}
    llm = named("llm", "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert comfyui(llm) == {}


def test_of_a_folder_each_file_that_is_known_has_its_place_and_a_lone_one_the_name_s() -> None:
    both = named("pack", "README.md", "base.safetensors", "ae.safetensors", "x.safetensors", base="checkpoints", ae="vae")
    assert comfyui(both) == {
        "checkpoints/pack/base.safetensors": "models/pack/base.safetensors",
        "vae/pack/ae.safetensors": "models/pack/ae.safetensors",
    }
    assert comfyui(named("s", "README.md", "s1.safetensors", is_lora=True)) == {"loras/s.safetensors": "loras/s/s1.safetensors"}


def test_whoever_asks_has_the_last_word() -> None:
    assert comfyui(named("up", "4x.pth"), up="upscale_models") == {"upscale_models/up.pth": "models/up/4x.pth"}
    assert comfyui(named("s", "x.safetensors", is_lora=True), s="controlnet") == {
        "controlnet/s.safetensors": "loras/s/x.safetensors"
    }
    repository = named("xl", "model_index.json", "xl.safetensors", "unet/diffusion_pytorch_model.safetensors")
    assert comfyui(repository, xl="checkpoints") == {"checkpoints/xl.safetensors": "models/xl/xl.safetensors"}


def test_a_name_that_has_its_suffix_gets_no_second_and_of_two_in_one_place_the_first_has_it() -> None:
    one, other = named("s", "x.safetensors"), named("s.safetensors", "y.safetensors")
    view = sorted_by_kind([one, other], COMFYUI, {})
    assert list(view.links) == ["checkpoints/s.safetensors"]
    assert list(view.without) == ["s.safetensors"]


def test_what_a_program_cannot_load_is_not_given_to_it_and_is_said() -> None:
    names = [
        named("pipe", "model_index.json", "vae/diffusion_pytorch_model.safetensors"),
        named("v", "v.safetensors", v=DIFFUSERS_VAE),
    ]
    names += [named("sd", "sd.safetensors"), named("s", "s.safetensors", is_lora=True)]
    view = sorted_by_kind(names, A1111, {"absent": "loras"})
    assert list(view.links) == ["models/Stable-diffusion/sd.safetensors", "models/Lora/s.safetensors"]
    assert sorted(view.without) == ["absent", "pipe", "v"]
    assert flags("/w", view.links) == ["--ckpt-dir", "/w/models/Stable-diffusion", "--lora-dir", "/w/models/Lora"]


# ---- whose link it is


@pytest.mark.parametrize(
    ("path", "target", "ours"),
    [
        ("loras/s.safetensors", "/shelf/names/loras/s/x.safetensors", True),
        ("loras/pack/x.safetensors", "/shelf/names/loras/pack/x.safetensors", True),
        ("text_encoders/xl_2.safetensors", "/shelf/names/models/xl/text_encoder_2/model.safetensors", True),
        ("diffusers/xl", "/shelf/names/models/xl", True),
        ("models--shelf--m", "/shelf/hub/models--shelf--m", True),
        ("loras/alias.safetensors", "/shelf/names/loras/s/x.safetensors", False),
        ("models--a--b", "/shelf/hub/models--shelf--m", False),
        ("diffusers/xl", "/shelf/snapshots/xl", False),
        ("loras/s.safetensors", "/other/names/loras/s/x.safetensors", False),
        ("loras/s.safetensors", "/shelf2/names/loras/s/x.safetensors", False),
        ("loras/s.safetensors", "../names/loras/s/x.safetensors", False),
        ("loras/s.safetensors", "/shelf/names", False),
        ("loras/s.safetensors", None, False),
    ],
)
def test_ours_leads_to_this_shelf_and_is_called_as_we_would_call_it(path: str, target: str | None, ours: bool) -> None:
    assert is_ours(path, target, STORE) is ours


def test_only_what_is_ours_is_turned_or_removed_and_what_is_right_stays() -> None:
    wanted = {
        f"loras/{name}.safetensors": f"/shelf/names/loras/{name}/f.safetensors" for name in ("new", "right", "old", "theirs")
    }
    found = {
        "loras/right.safetensors": wanted["loras/right.safetensors"],
        "loras/old.safetensors": "/shelf/names/models/old/g.safetensors",
        "loras/theirs.safetensors": None,
        "loras/stale.safetensors": "/shelf/names/loras/stale/f.safetensors",
        "loras/mine.safetensors": "/home/me/mine.safetensors",
    }
    assert {change.path.split("/")[1].split(".")[0]: change.deed for change in decide(wanted, found, STORE)} == {
        "new": Deed.ADD, "old": Deed.TURN, "theirs": Deed.LEAVE, "stale": Deed.REMOVE,
    }  # fmt: skip


def test_a_file_is_ours_by_its_first_line() -> None:
    assert decide_file("f", "# ours\na", None) == [Change(Deed.ADD, "f", "# ours\na")]
    assert decide_file("f", "# ours\na", "# ours\na") == []
    assert decide_file("f", "# ours\na", "# ours\nb")[0].deed is Deed.TURN
    assert decide_file("f", "# ours\na", "a1111:\n")[0].deed is Deed.LEAVE
