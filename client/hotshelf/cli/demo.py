"""`hotshelf demo`."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from hotshelf.cli.output import Output
from hotshelf.cli.verb import verb


@verb("demo", example="hotshelf demo --lite")
@click.option("--lite", is_flag=True, help="Without torch: bytes instead of pictures, in seconds.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True, help="Where pictures go.")
def demo(out_: Output, *, lite: bool, out: Path) -> int:
    """Show a cold start, the origin switched off, a warm start and a LoRA, on this machine."""
    from hotshelf.demo import play, play_lite

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    console = Console(stderr=out_.format != "human")
    try:
        measured = (play_lite if lite else play)(out.absolute(), console)
    except KeyboardInterrupt:
        console.print("interrupted; nothing is left running")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    if out_.format == "json":
        out_.result(measured, human=())
    return 0


VERBS = (demo,)
