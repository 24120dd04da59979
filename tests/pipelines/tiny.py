"""Tiny pipelines, made here and seeded: every class in the layout that `save_pretrained` writes."""

from __future__ import annotations

import contextlib
import json
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tests import objects

if TYPE_CHECKING:
    pass


def _tokenizer(folder: pathlib.Path) -> Any:
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *[f"{letter}</w>" for letter in letters], "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def _text_encoder(tokenizer: Any, *, projected: bool = False, width: int = 32) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=width, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _vae(latent_channels: int = 4, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8), in_channels=3, out_channels=3, latent_channels=latent_channels, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16, **more,
    ).eval()  # fmt: skip


def _unet(**more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    settings: dict[str, Any] = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (8, 16),
        "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 32, "attention_head_dim": 4,
    }  # fmt: skip
    return UNet2DConditionModel(**{**settings, **more}).eval()


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False)


def _sd(folder: pathlib.Path, cls: str = "StableDiffusionPipeline", **unet: Any) -> Any:
    import diffusers

    tokenizer = _tokenizer(folder / "made-from")
    return getattr(diffusers, cls)(
        vae=_vae(), text_encoder=_text_encoder(tokenizer), tokenizer=tokenizer, unet=_unet(**unet), scheduler=_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sdxl(folder: pathlib.Path) -> Any:
    from diffusers import StableDiffusionXLPipeline

    tokenizer = _tokenizer(folder / "made-from")
    first, second = _text_encoder(tokenizer), _text_encoder(tokenizer, projected=True)
    unet = _unet(
        cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8, use_linear_projection=True,
        projection_class_embeddings_input_dim=6 * 8 + 32, transformer_layers_per_block=1,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=first, text_encoder_2=second, tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet,
        scheduler=_scheduler(), add_watermarker=False,
    )  # fmt: skip


def _t5(tokenizer: Any) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)).eval()


def _sd3(folder: pathlib.Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer = _tokenizer(folder / "made-from")
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(shift_factor=0.0609, scaling_factor=1.5035),
        text_encoder=_text_encoder(tokenizer, projected=True), text_encoder_2=_text_encoder(tokenizer, projected=True),
        text_encoder_3=_t5(tokenizer), tokenizer=tokenizer, tokenizer_2=tokenizer, tokenizer_3=tokenizer,
    )  # fmt: skip


def _flux(folder: pathlib.Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer = _tokenizer(folder / "made-from")
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return FluxPipeline(
        transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(1, shift_factor=0.0609, scaling_factor=1.5035, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_text_encoder(tokenizer), text_encoder_2=_t5(tokenizer),
        tokenizer=tokenizer, tokenizer_2=tokenizer,
    )  # fmt: skip


def _controlnet(seed: int) -> Any:
    import torch
    from diffusers import ControlNetModel

    net = ControlNetModel(
        block_out_channels=(8, 16), layers_per_block=1, in_channels=4, norm_num_groups=4, cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=4,
        conditioning_embedding_out_channels=(8, 16),
    ).eval()  # fmt: skip
    for number, parameter in enumerate(net.parameters()):  # many are zero, and a net that does nothing proves nothing
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1000 * seed + number))
    return net


def _two_controlnets(folder: pathlib.Path) -> Any:
    from diffusers import StableDiffusionControlNetPipeline

    controlnets = [_controlnet(1), _controlnet(2)]
    return StableDiffusionControlNetPipeline(**_sd(folder).components, controlnet=controlnets, requires_safety_checker=False)


def _audio(folder: pathlib.Path) -> Any:
    """Its decoder has normed weights: tensors that torch derives from parameters, and that are none."""
    from diffusers import AutoencoderOobleck, EDMDPMSolverMultistepScheduler, StableAudioDiTModel, StableAudioPipeline
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel
    from transformers import T5Config, T5EncoderModel

    tokenizer = _tokenizer(folder / "made-from")
    text = T5Config(vocab_size=len(tokenizer), d_model=4, d_kv=2, d_ff=7, num_layers=1, num_heads=2)
    return StableAudioPipeline(
        vae=AutoencoderOobleck(
            encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3, decoder_input_channels=3,
            channel_multiples=[2, 4], sampling_rate=4,
        ).eval(),
        text_encoder=T5EncoderModel(text).eval(), tokenizer=tokenizer,
        projection_model=StableAudioProjectionModel(4, 4, 0, 32).eval(),
        transformer=StableAudioDiTModel(
            sample_size=4, in_channels=3, num_layers=2, attention_head_dim=4, num_key_value_attention_heads=2, out_channels=3,
            cross_attention_dim=4, time_proj_dim=8, global_states_input_dim=8, cross_attention_input_dim=4,
        ).eval(),
        scheduler=EDMDPMSolverMultistepScheduler(prediction_type="v_prediction", sigma_data=1.0),
    )  # fmt: skip


def motion_adapter(folder: pathlib.Path, *, seed: int) -> pathlib.Path:
    """What AnimateDiff adds to an "sd", in a folder."""
    import torch
    from diffusers import MotionAdapter

    adapter = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=4
    )
    for number, parameter in enumerate(adapter.parameters()):
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1000 * seed + number))
    adapter.save_pretrained(folder)
    return folder


#: Some 300 MB in float32: for measuring, not for drawing.
_LARGE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "cross_attention_dim": 32,
}


def _sd15(folder: pathlib.Path) -> Any:
    """As large as Stable Diffusion 1.5: some 4.2 GB in float32. For measuring only."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = _tokenizer(folder / "made-from")
    text = CLIPTextConfig(
        vocab_size=49_408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), latent_channels=4, layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    unet = _unet(
        sample_size=64, layers_per_block=2, block_out_channels=(320, 640, 1280, 1280), norm_num_groups=32,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), cross_attention_dim=768, attention_head_dim=8,
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=CLIPTextModel(text).eval(), tokenizer=tokenizer, unet=unet, scheduler=_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


#: What compiles fastest and still has a repeated block.
_LEAST: dict[str, Any] = {
    "block_out_channels": (8,), "down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("UpBlock2D",),
    "mid_block_type": None,
}  # fmt: skip


MAKERS: dict[str, Callable[[pathlib.Path], Any]] = {
    "sd": _sd,
    "sd-wide": lambda folder: _sd(folder, block_out_channels=(16, 32)),
    "sd-least": lambda folder: _sd(folder, **_LEAST),
    "sd-large": lambda folder: _sd(folder, **_LARGE),
    "sd15": _sd15,
    "sd-two-controlnets": _two_controlnets,
    "audio": _audio,
    "sd-img2img": lambda folder: _sd(folder, "StableDiffusionImg2ImgPipeline"),
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
}


def make(name: str, folder: pathlib.Path, *, seed: int = 0) -> Any:
    """A new pipeline of this shape; the same seed gives the same weights. `folder` takes what it is made from."""
    import torch

    with quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return MAKERS[name](folder)


def save_to(name: str, folder: pathlib.Path, *, seed: int = 0, **options: Any) -> pathlib.Path:
    """`make`, saved to `folder` as published pipelines are."""
    pipe = make(name, folder.with_name(f"{folder.name}.parts"), seed=seed)
    with quiet():
        pipe.save_pretrained(folder, **options)
    return folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Plain diffusers warns of much, and a warning is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tree(folder: pathlib.Path) -> objects.Tree:
    return objects.read(folder)
