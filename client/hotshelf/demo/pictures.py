"""The demo's two pictures: what was drawn, side by side, and where the time went, as a waterfall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH, ROW, LEFT, TOP = 960, 34, 190, 70
COLOURS = {
    "start": "#9aa5b1",
    "fetch": "#2f6fde",
    "verify": "#17a398",
    "import": "#f0a202",
    "load": "#8e44ad",
    "lora": "#d64583",
    "draw": "#4c9f38",
}
INK, PAPER, FAINT = "#1f2933", "#ffffff", "#cbd2d9"


@dataclass(frozen=True, slots=True)
class Bar:
    """One phase: `start` and `length` in seconds since the process began, on its own `lane`."""

    phase: str
    start: float
    length: float
    lane: int = 0


def bars(phases: Mapping[str, float], before: float) -> list[Bar]:
    """What overlapped stands above one another: acquiring on the first lane, importing on the second."""
    fetch, verify = phases.get("fetch", 0.0), phases.get("verify", 0.0)
    acquire, imports = phases.get("acquire", 0.0), phases.get("import", 0.0)
    drawn = [Bar("start", 0, before), Bar("fetch", before, max(fetch, acquire - verify)), Bar("import", before, imports, 1)]
    if verify:
        drawn.append(Bar("verify", before + max(fetch, acquire - verify), verify))
    at = before + max(acquire, imports)
    for phase in ("load", "lora", "draw"):
        drawn.append(Bar(phase, at, phases.get(phase, 0.0)))
        at += phases.get(phase, 0.0)
    return [bar for bar in drawn if bar.length > 0]


def waterfall(path: Path, title: str, rows: Sequence[tuple[str, list[Bar]]]) -> None:
    from PIL import Image, ImageDraw

    lanes = [1 + max(bar.lane for bar in row) for _, row in rows]
    height = TOP + sum(ROW * count + 26 for count in lanes) + 60
    picture = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(picture)
    end = max(bar.start + bar.length for _, row in rows for bar in row)
    scale = (WIDTH - LEFT - 40) / end
    pen.text((24, 20), title, fill=INK, font=_font(20))
    _axis(pen, end, scale, TOP + sum(ROW * count + 26 for count in lanes))
    top = TOP
    for (name, row), count in zip(rows, lanes, strict=True):
        total = max(bar.start + bar.length for bar in row)
        pen.text((24, top + 6), name, fill=INK, font=_font(17))
        pen.text((24, top + 28), f"{total:.2f} s", fill=INK, font=_font(14))
        for bar in row:
            left, y = LEFT + bar.start * scale, top + ROW * bar.lane
            right = max(left + 2, left + bar.length * scale)
            pen.rectangle((left, y + 3, right, y + ROW - 5), fill=COLOURS[bar.phase])
            if right - left > 64:
                pen.text((left + 6, y + 6), f"{bar.phase} {bar.length:.2f}", fill=PAPER, font=_font(14))
        top += ROW * count + 26
    _legend(pen, top + 34)
    picture.save(path)


def _axis(pen: Any, end: float, scale: float, y: int) -> None:
    step = next(step for step in (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 600) if end / step <= 10)
    for number in range(int(end / step) + 1):
        x = LEFT + number * step * scale
        pen.line((x, TOP - 8, x, y), fill=FAINT)
        pen.text((x - 8, y + 4), f"{number * step:g}", fill=INK, font=_font(13))
    pen.text((24, y + 4), "seconds", fill=INK, font=_font(13))


def _legend(pen: Any, y: int) -> None:
    x = LEFT
    for phase, colour in COLOURS.items():
        pen.rectangle((x, y, x + 12, y + 12), fill=colour)
        pen.text((x + 18, y - 2), phase, fill=INK, font=_font(13))
        x += 90


def side_by_side(path: Path, shown: Sequence[tuple[str, Path]], size: int = 256) -> None:
    """The drawings, enlarged without smoothing, each with a caption of a few lines."""
    from PIL import Image, ImageDraw

    margin, caption = 24, 64
    picture = Image.new("RGB", ((size + margin) * len(shown) + margin, size + margin * 2 + caption), PAPER)
    pen = ImageDraw.Draw(picture)
    for number, (words, image) in enumerate(shown):
        left = margin + number * (size + margin)
        with Image.open(image) as drawn:
            picture.paste(drawn.convert("RGB").resize((size, size), Image.Resampling.NEAREST), (left, margin))
        pen.rectangle((left - 1, margin - 1, left + size, margin + size), outline=FAINT)
        pen.multiline_text((left, margin + size + 10), words, fill=INK, font=_font(15), spacing=4)
    picture.save(path)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
