"""A BentoML service: `bentoml serve service:Painter`, then POST /draw {"prompt": "a lighthouse at night"} answers a picture.

Beside a hotshelfd set HOTSHELF_AUTOSTART=0; else the first worker to ask starts one. Kubernetes asks its /readyz.
"""

import os

import bentoml
import torch
from PIL.Image import Image

import hotshelf

os.environ.setdefault("HOTSHELF_AUTOSTART", "1")


@bentoml.service(traffic={"timeout": 600, "concurrency": 1})
class Painter:
    def __init__(self) -> None:
        """Once in each worker."""
        self.pipe = hotshelf.load_pipeline(os.environ.get("MODEL", "sdxl"), device="auto")

    @bentoml.api
    def draw(self, prompt: str, steps: int = 30, seed: int = 0) -> Image:
        noise = torch.Generator("cpu").manual_seed(seed)
        image: Image = self.pipe(prompt, num_inference_steps=steps, generator=noise).images[0]
        return image
