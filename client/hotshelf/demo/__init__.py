"""`hotshelf demo`: a cold start, the origin switched off, a warm start, a LoRA; in two minutes on any machine.

What is shown is real: an S3 server, `hotshelf push`, hotshelfd, and workers that are fresh processes. Only the link to
the origin is slowed down, to the rate that is printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hotshelf.demo import pictures
from hotshelf.demo.lite import play_lite
from hotshelf.demo.stage import LORAS, Stage, daemon, set_up
from hotshelf_shared.errors import HotshelfError

DATA = Path(__file__).parent / "data"
RATE = 2_000_000
PROMPT, SEED = "a red circle", 7
LORA, SCALE = "pink", 0.8
PHASES = ("fetch", "verify", "import", "load", "lora", "draw")

__all__ = ["play", "play_lite"]


def play(out: Path, console: Console) -> dict[str, Any]:
    """Plays the whole demo; what it measured. Raises HotshelfError."""
    missing = [name for name in ("torch", "diffusers", "PIL") if find_spec(name) is None]
    if missing:
        raise HotshelfError(f"the demo needs {', '.join(missing)}", hint="pip install 'hotshelf[demo]', or use --lite.")
    with set_up(out, RATE) as stage:
        console.print(f"[bold]1[/] {stage.server.name} on loopback; the link to it carries {RATE / 1e6:g} MB/s")
        for folder, name in (
            (DATA / "model", "shapes"),
            *((DATA / "loras" / lora, f"loras/{lora}") for lora in LORAS),
        ):
            report = stage.push(folder, name)
            console.print(f"  hotshelf push {folder.name} s3://weights/{name}   [dim]{report['size'] / 1e6:.1f} MB[/]")
        with daemon(stage):
            return _perform(stage, console)


def _perform(stage: Stage, console: Console) -> dict[str, Any]:
    console.print("[bold]2[/] hotshelfd is up, the shelf is empty: a worker asks for the model, cold …")
    runs = {"cold": stage.draw("cold", PROMPT, [], SEED)}
    stage.wait_held(LORAS)
    stage.switch_off()
    console.print("[bold]3[/] the origin is [bold]switched off[/]; a new worker process asks again …")
    runs["warm"] = stage.draw("warm", PROMPT, [], SEED)
    console.print(f"[bold]4[/] and once more, with the LoRA {LORA!r} at {SCALE}, which the daemon had preloaded …")
    runs["lora"] = stage.draw("lora", PROMPT, [{"path": LORA, "scale": SCALE}], SEED)
    same = _digest(stage.out / "cold.png") == _digest(stage.out / "warm.png")
    if not same:
        raise HotshelfError("the warm picture differs from the cold one", hint="That must never happen: please report it.")
    _draw_pictures(stage.out, runs)
    console.print(_table(runs))
    console.print(f"cold.png and warm.png are [bold]byte-identical[/]; bytes over the link: {stage.link.bytes / 1e6:.1f} MB\n")
    index = stage.store / "index" / "index.db"
    console.print(f"pictures  {stage.out / 'side-by-side.png'}, {stage.out / 'waterfall.png'}", soft_wrap=True)
    console.print(f"index     {index}", soft_wrap=True)
    look = f'hotshelf --store {stage.store} db query "SELECT sources, state, bytes, uses FROM v_snapshots"'
    console.print(f"inspect   {look}", soft_wrap=True, highlight=False)
    return {name: {"process_s": run["process_s"], "phases": run["phases"], "image": run["image"]} for name, run in runs.items()}


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _table(runs: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title="seconds (fetch and import overlap)")
    table.add_column("worker")
    for phase in (*PHASES, "answered"):
        table.add_column(phase, justify="right")
    for name, run in runs.items():
        cells = [f"{run['phases'].get(phase, 0.0):.2f}" for phase in PHASES]
        table.add_row(name, *cells, f"{run['process_s']:.2f}")
    return table


def _draw_pictures(out: Path, runs: Mapping[str, Mapping[str, Any]]) -> None:
    captions = {
        "cold": f'"{PROMPT}"\ncold, from the bucket',
        "warm": "the same, warm,\nthe bucket switched off",
        "lora": f"with the LoRA {LORA!r}\nat {SCALE}, bucket still off",
    }
    pictures.side_by_side(out / "side-by-side.png", [(captions[name], out / f"{name}.png") for name in runs])
    rows = []
    for name, run in runs.items():
        phases = run["phases"]
        rows.append((name, pictures.bars(phases, max(0.0, run["process_s"] - phases["total"] - phases["draw"]))))
    pictures.waterfall(out / "waterfall.png", f"Where a worker's time goes, at {RATE / 1e6:g} MB/s to the bucket", rows)
