"""The demo without torch: the same bucket, daemon and processes, but bytes instead of pictures. Takes seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hotshelf.demo.stage import Stage, daemon, set_up
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import IntegrityError

RATE = 12_000_000
SIZES = {"unet/diffusion_pytorch_model.safetensors": 16 << 20, "vae/diffusion_pytorch_model.safetensors": 4 << 20}


def play_lite(out: Path, console: Console) -> dict[str, Any]:
    """Cold, then warm with the origin off; what it measured."""
    with set_up(out, RATE) as stage:
        console.print(f"[bold]1[/] {stage.server.name} on loopback; the link to it carries {RATE / 1e6:g} MB/s")
        folder = _made_up(stage.folder / "shapes")
        report = stage.push(folder, "shapes")
        console.print(f"  hotshelf push {folder.name} s3://weights/shapes   [dim]{report['size'] / 1e6:.1f} MB[/]")
        with daemon(stage):
            console.print("[bold]2[/] hotshelfd is up, the shelf is empty: hotshelf acquire shapes, cold …")
            cold = _acquire(stage, folder)
            stage.switch_off()
            console.print("[bold]3[/] the origin is [bold]switched off[/]; a new process acquires again …")
            warm = _acquire(stage, folder)
    table = Table(title="seconds")
    for column in ("worker", "process", "MB over the link"):
        table.add_column(column, justify="left" if column == "worker" else "right")
    for name, run in (("cold", cold), ("warm", warm)):
        table.add_row(name, f"{run['process_s']:.2f}", f"{run['link_mb']:.1f}")
    console.print(table)
    console.print(f"every byte verified against its sha256; the index is {stage.store / 'index' / 'index.db'}", soft_wrap=True)
    return {"cold": cold, "warm": warm}


def _acquire(stage: Stage, pushed: Path) -> dict[str, Any]:
    before = stage.link.bytes
    output, seconds = stage.run("-m", "hotshelf", "acquire", "shapes", "--format", "json")
    (lease,) = json.loads(output)["leases"]
    for name in SIZES:
        if Digest.of((Path(lease["path"]) / name).read_bytes()) != Digest.of((pushed / name).read_bytes()):
            raise IntegrityError(f"{name} is not what was pushed")
    return {"process_s": seconds, "link_mb": (stage.link.bytes - before) / 1e6}


def _made_up(folder: Path) -> Path:
    """A model's files of seeded noise."""
    for name, size in SIZES.items():
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_bytes(random.Random(name).randbytes(size))  # noqa: S311 - noise, no secret
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder
