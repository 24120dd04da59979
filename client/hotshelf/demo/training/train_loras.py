"""Train the demo's LoRAs on the finished model: one for each look the model itself has never drawn.

The captions stay the same and the pictures change, so all that an adapter can learn is the look. The
empty caption learns it too, or guidance would push every picture away from the plain look twice over.
"""

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from hotshelf.demo.training.shapes import LOOKS
from hotshelf.demo.training.train import denoising_loss, encoded_pictures, schedule, tokenize

RANK = 8
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder train.py wrote the pipeline to")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the LoRAs to")
    parser.add_argument("--looks", nargs="+", choices=LOOKS, default=list(LOOKS))
    parser.add_argument("--kohya", type=Path, help="folder to write them to a second time, in the kohya layout")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    for name in args.looks:
        torch.manual_seed(args.seed)
        weights = train_lora(args.model, name, args.steps, torch.Generator().manual_seed(args.seed))
        save_lora(weights, args.out, name)
        if args.kohya:
            save_kohya(weights, args.kohya, name)


def train_lora(model: Path, name: str, steps: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Half-precision weights of an adapter on the UNet's attention that gives pictures the named look."""
    pipeline = StableDiffusionPipeline.from_pretrained(model, local_files_only=True, use_safetensors=True)
    captions, latents = encoded_pictures(pipeline.vae, LOOKS[name], 3_000, rng)
    with torch.no_grad():
        prompts = pipeline.text_encoder(tokenize(pipeline.tokenizer)).last_hidden_state

    unet = pipeline.unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=ATTENTION))
    for _ in schedule(unet, name, steps, learning_rate=5e-3):
        denoising_loss(unet, prompts, captions, latents, 64, rng).backward()
    return {key: weight.half().contiguous() for key, weight in get_peft_model_state_dict(unet).items()}


def save_lora(weights: dict[str, Tensor], folder: Path, name: str) -> None:
    """One file in the layout diffusers writes."""
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=convert_state_dict_to_diffusers(weights), weight_name=f"{name}.safetensors"
    )


def save_kohya(weights: dict[str, Tensor], folder: Path, name: str) -> None:
    """The same weights in the layout most shared LoRAs come in, to check that readers take either."""
    folder.mkdir(parents=True, exist_ok=True)
    prefixed = {f"unet.{key}": weight for key, weight in weights.items()}
    save_file(convert_state_dict_to_kohya(prefixed), folder / f"{name}_kohya.safetensors")


if __name__ == "__main__":
    main()
