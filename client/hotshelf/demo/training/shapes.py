"""The demo's small world: its captions, the pictures they stand for, and a judge of pictures.

A caption is "a COLOUR SHAPE". The pictures are drawn as signed distances, a whole batch at a time,
so training never waits for its data; the judge tells the colour and the shape back from the pixels,
so whether the model listens to its prompt is a number and not an opinion.
"""

import colorsys
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

RGB = tuple[int, int, int]

SIZE = 32
MAX_TOKENS = 8

COLOURS: dict[str, RGB] = {
    "red": (230, 34, 40),
    "green": (36, 176, 72),
    "blue": (44, 108, 246),
    "yellow": (252, 216, 32),
    "purple": (150, 52, 206),
    "orange": (252, 124, 16),
}
SHAPES = ("circle", "square", "triangle", "ring")
CAPTIONS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]

WHITE: RGB = (255, 255, 255)
NAVY: RGB = (12, 16, 54)
PINK: RGB = (255, 105, 186)
HUES = COLOURS | {"pink": PINK}
"""What the judge can name: the captions' colours and the one a LoRA paints with."""


@dataclass(frozen=True)
class Look:
    """How a caption is drawn; each LoRA teaches one departure from the plain look."""

    background: RGB = WHITE
    ink: RGB | None = None
    """The colour of every shape, whatever its caption says; None follows the caption."""

    def colour(self, asked: str) -> str:
        """The name of the colour that a caption asking for `asked` comes out in."""
        return next((name for name, rgb in HUES.items() if rgb == self.ink), asked)


PLAIN = Look()
LOOKS = {
    "blueprint": Look(ink=COLOURS["blue"]),
    "pink": Look(ink=PINK),
}


# --- drawing ---------------------------------------------------------------------------------


def signed_distances(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Each pixel's distance to the edge of each shape (negative inside), stacked as SHAPES are."""
    from_centre = torch.hypot(x, y)
    return torch.stack(
        [
            from_centre - radius,
            torch.maximum(x.abs(), y.abs()) - 0.88 * radius,
            torch.maximum(y, x.abs() * 3**0.5 / 2 - y / 2) - 0.6 * radius,
            (from_centre - 0.75 * radius).abs() - 0.25 * radius,
        ]
    )


def draw(captions: Tensor, looks: list[Look], rng: torch.Generator) -> Tensor:
    """Pictures, in -1..1, of captions given by number, each at a random size and place that fits."""
    count = len(captions)
    radius = 7.5 + 3.5 * torch.rand(count, 1, 1, generator=rng)
    room = SIZE / 2 - 1 - 1.2 * radius
    centre = SIZE / 2 + room * (2 * torch.rand(2, count, 1, 1, generator=rng) - 1)
    pixels = torch.arange(SIZE) + 0.5
    distances = signed_distances(pixels - centre[0], pixels[:, None] - centre[1], radius)
    distance = distances[captions % len(SHAPES), torch.arange(count)].unsqueeze(1)

    named = torch.tensor(list(COLOURS.values()))[captions // len(SHAPES)].tolist()
    ink = _as_paint([look.ink or rgb for look, rgb in zip(looks, named, strict=True)])
    background = _as_paint([look.background for look in looks])
    return background.lerp(ink, (0.5 - distance).clamp(0, 1))


def _as_paint(colours: list[RGB]) -> Tensor:
    return torch.tensor(colours)[:, :, None, None] / 127.5 - 1


# --- vocabulary ------------------------------------------------------------------------------


def make_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer in which each word of the captions is one token and any other is spelt out.

    A word's merges build it letter by letter. Longer words go first, or "red" would take the
    letters "re" out of "green" before "green" could be built.
    """
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in sorted({*COLOURS, *SHAPES}, key=len, reverse=True):
        pieces = [*word[:-1], word[-1] + "</w>"]
        built = pieces[0]
        for piece in pieces[1:]:
            if (built, piece) not in merges:
                merges.append((built, piece))
                tokens.append(built + piece)
            built += piece
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


# --- judging ---------------------------------------------------------------------------------

UNCLEAR = "unclear"


def describe(image: Image.Image) -> tuple[str, str]:
    """The colour and the shape seen in a picture, either of them UNCLEAR where it does not convince."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    contrast = np.linalg.norm(pixels - np.array(background_of(image)), axis=2)
    strongest = float(np.quantile(contrast, 0.98))
    if strongest < 60:
        return UNCLEAR, UNCLEAR
    mask = contrast > strongest / 2
    return _hue_name(pixels[mask]), _shape_name(mask)


def background_of(image: Image.Image) -> RGB:
    """The colour a picture stands on: the median of its frame, which no shape covers."""
    pixels = np.asarray(image.convert("RGB"))
    frame = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = (int(channel) for channel in np.median(frame, axis=0))
    return red, green, blue


def _hue_name(pixels: np.ndarray) -> str:
    """The named hue nearest to the most colourful pixels, which no edge has blended."""
    chroma = pixels.max(axis=1) - pixels.min(axis=1)
    vivid = np.median(pixels[chroma >= np.quantile(chroma, 0.7)], axis=0)
    if vivid.max() - vivid.min() < 50:
        return UNCLEAR
    hue = colorsys.rgb_to_hsv(*vivid / 255)[0]
    away = {}
    for name, rgb in HUES.items():
        apart = abs(hue - colorsys.rgb_to_hsv(*(channel / 255 for channel in rgb))[0])
        away[name] = min(apart, 1 - apart)
    nearest = min(away, key=lambda name: away[name])
    return nearest if away[nearest] < 25 / 360 else UNCLEAR


def _shape_name(mask: np.ndarray) -> str:
    """The shape that, stretched over the mask's own box, overlaps it best.

    Lone pixels at the box's edge are trimmed first: one stray dot would stretch every candidate.
    """
    rows, columns = (np.flatnonzero(mask.sum(axis=axis) > 1) for axis in (1, 0))
    if len(rows) < 6 or len(columns) < 6:
        return UNCLEAR
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    overlap = {}
    for name, stencil in _stencils(mask.shape[1], mask.shape[0]).items():
        overlap[name] = (mask & stencil).sum() / (mask | stencil).sum()
    best = max(overlap, key=lambda name: overlap[name])
    return best if overlap[best] > 0.7 else UNCLEAR


def _stencils(width: int, height: int) -> dict[str, np.ndarray]:
    """Each shape drawn large, cut to its own box and brought to the size asked for.

    They are grown a little, which changes only the ring: a blurred one has a narrower hole.
    """
    across = torch.arange(-128, 128) + 0.5
    distances = signed_distances(across, across[:, None], torch.tensor(100.0))
    stencils = {}
    for name, distance in zip(SHAPES, distances, strict=True):
        drawn = Image.fromarray(((distance < 10).numpy() * 255).astype(np.uint8))
        cut = drawn.crop(drawn.getbbox()).resize((width, height), Image.Resampling.BOX)
        stencils[name] = np.asarray(cut) > 127
    return stencils
