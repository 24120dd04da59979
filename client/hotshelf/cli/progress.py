"""Progress on stderr: a bar on a terminal, else a line a second at the most."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hotshelf.cli.output import Output, size
from hotshelf_shared.wire import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

LINE_S = 1.0
Show = Callable[[Progress], None]


@contextmanager
def shown(out: Output, *, now: Callable[[], float] = time.monotonic) -> Iterator[Show]:
    """What to hand on as `on_progress`. Nothing is shown before there is something to show."""
    if out.format == "quiet":
        yield lambda _: None
    elif out.format == "human" and sys.stderr.isatty():
        with _bars() as bars:
            task = bars.add_task("", total=None)

            def draw(at: Progress) -> None:
                label = f"{at.phase} {at.source}".strip()
                bars.update(task, description=label, completed=at.bytes_done, total=at.bytes_total or None, at=at)

            yield draw
    else:
        yield _lines(now)


def _lines(now: Callable[[], float]) -> Show:
    last = -LINE_S

    def show(at: Progress) -> None:
        nonlocal last
        if now() - last >= LINE_S:
            last = now()
            print(at, file=sys.stderr, flush=True)

    return show


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Figures(ProgressColumn):
        """Bytes, rate and time left, as the daemon knows them."""

        def render(self, task: Task) -> Text:
            at = task.fields.get("at")
            if not isinstance(at, Progress):
                return Text("waiting for the daemon")
            left = "" if at.eta_s is None else f"  {at.eta_s:.0f} s left"
            return Text(f"{size(at.bytes_done)} of {size(at.bytes_total)}  {size(at.rate_bytes_s)}/s{left}")

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), Figures())
    return Bars(*columns, console=Console(stderr=True), transient=True)
