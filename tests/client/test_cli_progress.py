"""Progress on stderr: a bar for people, seldom lines for logs."""

from __future__ import annotations

import io

import pytest

from hotshelf.cli import progress
from hotshelf.cli.output import Output, size
from hotshelf_shared.wire import Progress


def test_lines_come_once_a_second_at_the_most(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 0.0, 0.4, 0.9, 1.1, 1.1, 1.5])
    with progress.shown(Output("human"), now=lambda: next(times)) as show:
        for done in range(5):
            show(Progress("fetching", done, 10))
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_terminal_gets_a_bar_with_bytes_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with progress.shown(Output("human")) as show:
        show(Progress("fetching", 5_000_000, 10_000_000, 2_000_000.0, 2.5, source="s3://weights/[sdxl]"))
    drawn = terminal.getvalue()
    for part in ("fetching s3://weights/[sdxl]", "5.0 MB of 10.0 MB", "2.0 MB/s", "2 s left"):
        assert part in drawn


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2e18, "2000.0 PB")])
def test_sizes_are_short(count: float, text: str) -> None:
    assert size(count) == text
