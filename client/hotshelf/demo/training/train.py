"""Train the demo's model from nothing: a whole Stable Diffusion pipeline of a few megabytes.

The autoencoder comes first and sees every look there is, so that a LoRA has somewhere to go; the text
encoder and the UNet then learn the captions together, in the plain look alone, so that a LoRA has
something to teach.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hotshelf.demo.training.shapes import CAPTIONS, MAX_TOKENS, NAVY, PINK, PLAIN, SIZE, WHITE, Look, draw, make_tokenizer

PROMPTS = [*CAPTIONS, ""]
"""What the text encoder learns: every caption, and the empty one that guidance steers away from."""
EMPTY = len(CAPTIONS)
EMPTY_SHARE = 0.1
TEXT_WIDTH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the pipeline to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--autoencoder-steps", type=int, default=1100)
    parser.add_argument("--denoiser-steps", type=int, default=800)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng = torch.Generator().manual_seed(args.seed)

    autoencoder = train_autoencoder(args.autoencoder_steps, rng)
    captions, latents = encoded_pictures(autoencoder, PLAIN, 12_000, rng)
    tokenizer = make_tokenizer()
    text_encoder, unet = train_denoiser(tokenizer, captions, latents, args.denoiser_steps, rng)

    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    save_in_half(pipeline, args.out)


def train_autoencoder(steps: int, rng: torch.Generator) -> AutoencoderKL:
    """An autoencoder from 32x32 pixels to 8x8 latents, scaled so that the latents' deviation is one."""
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )
    for _ in schedule(autoencoder, "autoencoder", steps, learning_rate=2e-3):
        captions = torch.randint(len(CAPTIONS), (32,), generator=rng)
        pictures = draw(captions, mixed_looks(len(captions), rng), rng)
        posterior = autoencoder.encode(pictures).latent_dist
        decoded = autoencoder.decode(posterior.sample(rng)).sample
        loss = functional.mse_loss(decoded, pictures) + 0.3 * functional.l1_loss(decoded, pictures)
        (loss + 3e-3 * posterior.kl().mean() / posterior.mean[0].numel()).backward()

    autoencoder.requires_grad_(False).eval()
    _, unscaled = encoded_pictures(autoencoder, PLAIN, 500, rng, scale=1.0)
    autoencoder.register_to_config(scaling_factor=round(1 / float(unscaled.std()), 4))
    return autoencoder


def mixed_looks(count: int, rng: torch.Generator) -> list[Look]:
    """Mostly the plain look, and each LoRA's look on its own or mixed with the other."""
    return [
        Look(
            background=NAVY if night < 0.4 else WHITE,
            ink=PINK if pink < 0.2 else None,
        )
        for night, pink in torch.rand(count, 2, generator=rng).tolist()
    ]


@torch.no_grad()
def encoded_pictures(
    autoencoder: AutoencoderKL, look: Look, count: int, rng: torch.Generator, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Captions and the latents of pictures of them, made once: encoding costs more than drawing."""
    captions = torch.randint(len(CAPTIONS), (count,), generator=rng)
    latents = [autoencoder.encode(draw(chunk, [look] * len(chunk), rng)).latent_dist.mean for chunk in captions.split(250)]
    return captions, torch.cat(latents) * (scale or autoencoder.config.scaling_factor)


def train_denoiser(
    tokenizer: CLIPTokenizer, captions: Tensor, latents: Tensor, steps: int, rng: torch.Generator
) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """The text encoder and the UNet, as the running average of their weights leaves them."""
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=latents.shape[-1],
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 96),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    both = nn.ModuleDict({"text_encoder": text_encoder, "unet": unet})
    average = AveragedModel(both, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    tokens = tokenize(tokenizer)
    for _ in schedule(both, "denoiser", steps, learning_rate=1.5e-3):
        prompts = text_encoder(tokens).last_hidden_state
        denoising_loss(unet, prompts, captions, latents, 96, rng).backward()
        average.update_parameters(both)
    averaged = average.module.requires_grad_(False).eval()
    return averaged["text_encoder"], averaged["unet"]


def denoising_loss(  # noqa: PLR0917 - what it needs, in the order in which it uses it
    unet: UNet2DConditionModel, prompts: Tensor, captions: Tensor, latents: Tensor, batch: int, rng: torch.Generator
) -> Tensor:
    """How far the UNet is from the velocity of a random batch, some of it with no caption."""
    scheduler = make_scheduler()
    chosen = torch.randint(len(latents), (batch,), generator=rng)
    clean = latents[chosen]
    noise = torch.randn(clean.shape, generator=rng)
    times = torch.randint(scheduler.config.num_train_timesteps, (batch,), generator=rng)
    uncaptioned = torch.rand(batch, generator=rng) < EMPTY_SHARE
    caption = torch.where(uncaptioned, EMPTY, captions[chosen])
    velocity = unet(scheduler.add_noise(clean, noise, times), times, prompts[caption]).sample
    return functional.mse_loss(velocity, scheduler.get_velocity(clean, noise, times))


def tokenize(tokenizer: CLIPTokenizer) -> Tensor:
    """PROMPTS as token numbers, padded as the pipeline pads them."""
    tokens: Tensor = tokenizer(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    return tokens


def make_scheduler() -> DDIMScheduler:
    """DDIM predicting velocity; trailing spacing starts it from pure noise, as few steps need."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def save_in_half(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Half the bytes on disk, yet a plain from_pretrained gives single precision throughout.

    diffusers loads its own models so unless told otherwise, but transformers follows the precision its
    config names: left at half, the text encoder would not fit the UNet it feeds.
    """
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


def schedule(model: nn.Module, name: str, steps: int, learning_rate: float) -> Iterator[int]:
    """Yield each step for its caller to put gradients in, then take it, warming up and cooling down."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=1e-3)
    pace = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    started = time.monotonic()
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        yield step
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        pace.step()
    print(f"{name}: {steps} steps in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
