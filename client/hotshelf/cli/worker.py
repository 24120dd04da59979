"""`hotshelf worker`: a worker from a process that has imported torch and diffusers already."""

from __future__ import annotations

import json
import os
import sys

import click

from hotshelf.cli.output import Output
from hotshelf.cli.verb import verb


class _Python(click.Command):
    """Its options end where the program begins: what follows is the program's, as on Python's own command line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        valued = {name for one in self.params if isinstance(one, click.Option) and not one.is_flag for name in one.opts}
        place = 0
        while place < len(args) and args[place].startswith("-") and not args[place].startswith("-m") and args[place] != "--":
            place += 2 if args[place] in valued else 1
        program = args[place:]
        return super().parse_args(ctx, [*args[:place], *(["--"] if program[:1] != ["--"] else []), *program])


@verb("worker", cls=_Python, example="hotshelf worker --prewarm -m hotshelf.handler --serve 0.0.0.0:8000")
@click.option("--prewarm", is_flag=True, help="Import torch and diffusers, stay, and fork workers from here on.")
@click.option("--zygote", metavar="PATH", help="Where it listens (HOTSHELF_ZYGOTE); one of this user's own by default.")
@click.option("--preload", metavar="MODULE", multiple=True, help="With --prewarm: import this too; may be repeated.")
@click.option(
    "--restarts",
    metavar="N",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="With --prewarm: start the program again when it fails, so often in a row.",
)
@click.argument("program", metavar="[-m MODULE | SCRIPT] [ARGS]...", nargs=-1, type=click.UNPROCESSED)
def worker(
    out: Output, *, prewarm: bool, zygote: str | None, preload: tuple[str, ...], restarts: int, program: tuple[str, ...]
) -> None:
    """Run a Python program as a worker, in well under a second where a prewarmed process waits.

    It is as if Python had been started with it: arguments, environment, files, signals and exit code. Where nothing is
    prewarmed, or what is does not fit, Python is started with it.
    """
    from hotshelf.prewarm import address, stub
    from hotshelf.prewarm.program import Program, python

    asked = Program.parse(program)
    if not prewarm:
        if asked is None:
            raise click.UsageError("name a program: -m MODULE, or a SCRIPT")
        if preload:
            raise click.UsageError("--preload goes with --prewarm")
        stub.run(asked, zygote)
    given = {
        "address": address.chosen(zygote),
        "format": out.format,
        "preload": preload,
        "program": [] if asked is None else asked.words,
        "restarts": restarts,
    }
    sys.stdout.flush()
    os.execv(sys.executable, python("-m", "hotshelf.prewarm", json.dumps(given)))  # noqa: S606 - Python itself


VERBS = (worker,)
