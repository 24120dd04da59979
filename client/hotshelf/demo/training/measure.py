"""Measure the demo's model and its LoRAs: does each picture show what its prompt asked for?

Prints a table, and on request draws contact sheets (a column for each colour, a row for each shape).
"""

import argparse
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from hotshelf.demo.training.shapes import CAPTIONS, COLOURS, LOOKS, PLAIN, SHAPES, SIZE, Look, background_of, describe

STEPS = 12
GUIDANCE = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--loras", type=Path, nargs="*", default=[], help="files named after their look")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 0.8])
    parser.add_argument("--seeds", type=int, default=4, help="how many seeds to try, from 0")
    parser.add_argument("--sheets", type=Path, help="folder to draw contact sheets in")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    pipeline = DiffusionPipeline.from_pretrained(args.model, local_files_only=True, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    measure(pipeline, "plain", PLAIN, args.seeds, args.sheets)
    for file in args.loras:
        pipeline.load_lora_weights(file, adapter_name=file.stem)
        for scale in args.scales:
            pipeline.set_adapters([file.stem], [scale])
            measure(pipeline, f"{file.stem} {scale}", LOOKS[file.stem.split("_")[0]], args.seeds, args.sheets)
        pipeline.delete_adapters(file.stem)
    if args.loras:
        pipeline.unload_lora_weights()
        measure(pipeline, "plain again", PLAIN, 1, None)


def measure(pipeline: DiffusionPipeline, name: str, look: Look, seeds: int, sheets: Path | None) -> None:
    """Print how many captions come out right for each seed, and which do not."""
    started = time.monotonic()
    pictures = {seed: generate(pipeline, seed) for seed in range(seeds)}
    seconds = (time.monotonic() - started) / seeds / len(CAPTIONS)
    right: list[int] = []
    on_background = 0
    wrong: Counter[str] = Counter()
    for images in pictures.values():
        right.append(0)
        for caption, image in zip(CAPTIONS, images, strict=True):
            colour, shape = caption.split()[1:]
            expected = (look.colour(colour), shape)
            seen = describe(image)
            on_background += shows(image, look)
            right[-1] += seen == expected
            if seen != expected:
                wrong[f"{caption} -> {' '.join(seen)}"] += 1
    scores = " ".join(f"{score:2d}" for score in right)
    total = seeds * len(CAPTIONS)
    print(
        f"{name:14} right {scores}  ({sum(right)} of {total})  background {on_background} of {total}  {seconds:.2f} s an image"
    )
    for mistake, count in wrong.most_common():
        print(f"    {count} x {mistake}")
    if sheets:
        sheets.mkdir(parents=True, exist_ok=True)
        contact_sheet(pictures[0]).save(sheets / f"{name.replace(' ', '_')}.png")


def right(pipeline: DiffusionPipeline, name: str, seed: int) -> tuple[int, list[str]]:
    """How many of all captions come out as they should in the look `name` (or ``plain``), and what went wrong."""
    look = LOOKS.get(name, PLAIN)
    wrong = []
    for caption, image in zip(CAPTIONS, generate(pipeline, seed), strict=True):
        colour, shape = caption.split()[1:]
        expected = (look.colour(colour), shape)
        if describe(image) != expected or not shows(image, look):
            wrong.append(f"{caption} -> {' '.join(describe(image))}")
    return len(CAPTIONS) - len(wrong), wrong


def generate(pipeline: DiffusionPipeline, seed: int) -> list[Image.Image]:
    """A picture of each caption, each from the seed itself, as a user asking for one would get it."""
    generators = [torch.Generator().manual_seed(seed) for _ in CAPTIONS]
    images: list[Image.Image] = pipeline(
        CAPTIONS, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators
    ).images
    return images


def shows(image: Image.Image, look: Look) -> bool:
    """Whether a picture stands on the look's background."""
    return bool(np.linalg.norm(np.array(background_of(image)) - np.array(look.background)) < 45)


def contact_sheet(images: list[Image.Image], enlarge: int = 4, gap: int = 2) -> Image.Image:
    """All captions on one picture, enlarged without smoothing so that what was generated is what is seen."""
    cell = SIZE + gap
    sheet = Image.new("RGB", (len(COLOURS) * cell + gap, len(SHAPES) * cell + gap), "gray")
    for number, image in enumerate(images):
        column, row = divmod(number, len(SHAPES))
        sheet.paste(image, (gap + column * cell, gap + row * cell))
    return sheet.resize((sheet.width * enlarge, sheet.height * enlarge), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
