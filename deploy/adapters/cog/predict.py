"""A Cog predictor: `cog predict -i prompt="a lighthouse at night"`. What its image holds is in cog.yaml, beside this.

The container is alone, so the first to ask starts hotshelfd in it (embedded mode). B2_* or AWS_* say where weights are.
"""

import os
import tempfile

import torch
from cog import BasePredictor, Input, Path

import hotshelf

os.environ.setdefault("HOTSHELF_AUTOSTART", "1")


class Predictor(BasePredictor):
    def setup(self) -> None:
        """Once, before the first prediction."""
        self.pipe = hotshelf.load_pipeline(os.environ.get("MODEL", "sdxl"), device="auto")

    def predict(
        self,
        prompt: str = Input(description="What to draw"),
        steps: int = Input(description="Steps of the scheduler", default=30, ge=1, le=200),
        seed: int = Input(description="The same seed draws the same", default=0, ge=0),
    ) -> Path:
        noise = torch.Generator("cpu").manual_seed(seed)
        image = self.pipe(prompt, num_inference_steps=steps, generator=noise).images[0]
        with tempfile.NamedTemporaryFile(suffix=".png", delete=False) as file:  # Cog removes what it has sent
            image.save(file, "PNG")
        return Path(file.name)
