"""What a file of weights is to programs that sort them into folders, told by the header of the safetensors format.

The words are the names of ComfyUI's folders. Where one is in diffusers' form, which AUTOMATIC1111 does not load, it is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: As the format has it, longer headers are refused by its own library.
_LONGEST_HEADER = 100_000_000
DIFFUSERS_VAE = "vae (diffusers)"
#: What only tensors of this kind are called, or begin with. The first that fits counts.
_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loras", ("lora_unet_", "lora_te", "lora_transformer_")),
    ("controlnet", ("control_model.", "controlnet_cond_embedding.", "controlnet_blocks.", "input_hint_block.")),
    ("clip_vision", ("vision_model.encoder.", "visual.transformer.")),
    (DIFFUSERS_VAE, ("decoder.up_blocks.",)),
    ("vae", ("decoder.up.", "decoder.conv_in.")),
    ("text_encoders", ("text_model.encoder.", "encoder.block.0.layer.")),
    ("diffusion_models", ("double_blocks.", "joint_blocks.", "input_blocks.", "transformer_blocks.", "down_blocks.")),
)
_OF_EMBEDDINGS = frozenset(("emb_params", "clip_l", "clip_g"))
_OF_LORAS = (".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", ".lora.down.weight", ".hada_w1_a")
#: What a checkpoint has beside its diffusion model.
_BESIDE = ("first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders.")


@dataclass(frozen=True, slots=True)
class Header:
    """Names of tensors, and what its maker says of it."""

    tensors: frozenset[str]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_header(path: str) -> Header | None:
    """None for what is no safetensors file. Raises OSError."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= _LONGEST_HEADER:
            return None
        text = file.read(size)
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    said = body.pop("__metadata__", None)
    return Header(frozenset(body), {str(key): str(value) for key, value in said.items()} if isinstance(said, dict) else {})


def kind_of(header: Header) -> str | None:
    """A kind, or None when it cannot be told. What its maker says counts first (kohya's trainer, SAI Model Spec)."""
    architecture = header.metadata.get("modelspec.architecture", "").rpartition("/")[2].lower()
    if header.metadata.get("ss_network_module") or architecture == "lora":
        return "loras"
    if architecture in ("controlnet", "control-net"):
        return "controlnet"
    if architecture == "textual-inversion" or (header.tensors and header.tensors <= _OF_EMBEDDINGS):
        return "embeddings"
    if any(name.endswith(_OF_LORAS) for name in header.tensors):
        return "loras"
    if _has(header.tensors, ("model.diffusion_model.",)):
        return "checkpoints" if _has(header.tensors, _BESIDE) else "diffusion_models"
    return next((kind for kind, signs in _SIGNS if _has(header.tensors, signs)), None)


def _has(tensors: Iterable[str], beginnings: tuple[str, ...]) -> bool:
    return any(name.startswith(beginnings) for name in tensors)
