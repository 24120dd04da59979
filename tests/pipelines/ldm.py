"""A tiny Stable Diffusion as one file, in the names that checkpoints had before diffusers: the inverse of its conversion."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
)
_UNET = (
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.resnets.1", "middle_block.2"),
)
_VAE_ATTENTION = (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"))


def checkpoint(pipe: Any) -> bytes:
    """All weights of a StableDiffusionPipeline as one safetensors file."""
    from safetensors.torch import save

    per_block = pipe.unet.config.layers_per_block + 1
    levels = len(pipe.vae.config.block_out_channels)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in pipe.unet.state_dict().items():
        state[f"model.diffusion_model.{_unet(name, per_block)}"] = tensor
    for name, tensor in pipe.vae.state_dict().items():
        old = _vae(name, levels)
        flat = ".attn_1." in old and tensor.ndim == 2
        state[f"first_stage_model.{old}"] = tensor[:, :, None, None] if flat else tensor
    for name, tensor in pipe.text_encoder.state_dict().items():
        state[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    return save({name: tensor.contiguous() for name, tensor in state.items()})


def _replaced(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for new, old in pairs:
        name = re.sub(rf"(?<![\w]){re.escape(new)}(?=\.)", old, name)
    return name


def _unet(name: str, per_block: int) -> str:
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name):
        way, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        first = per_block * block + (1 if way == "down" else 0)
        where = f"{'input' if way == 'down' else 'output'}_blocks"
        if kind == "downsamplers":
            return f"{where}.{first + per_block - 1}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"{where}.{first + per_block - 1}.{2 if block == 0 else 1}.{rest}"
        rest = _replaced(rest, _RESNET) if kind == "resnets" else rest
        return f"{where}.{first + layer}.{0 if kind == 'resnets' else 1}.{rest}"
    name = _replaced(name, _UNET)
    return _replaced(name, _RESNET) if name.startswith(("middle_block.0", "middle_block.2")) else name


def _vae(name: str, levels: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        return _replaced(name.replace("mid_block.attentions.0", "mid.attn_1"), _VAE_ATTENTION)
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
