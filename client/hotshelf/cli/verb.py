"""What every verb has: an example in its help, ``--format``, a client, and an end that says what went wrong."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import click

import hotshelf as package
from hotshelf.cli.output import FORMATS, Output
from hotshelf.client import Client
from hotshelf_shared.errors import BadConfiguration, HotshelfError

#: A verb takes its output first and may return an exit code.
Verb = Callable[..., int | None]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--socket", metavar="PATH", help="The daemon's socket (HOTSHELF_SOCKET).")
@click.option("--store", metavar="DIR", help="Where the shelf is mounted here (HOTSHELF_STORE).")
@click.version_option(package.__version__, prog_name="hotshelf")
@click.pass_context
def hotshelf(context: click.Context, socket: str | None, store: str | None) -> None:
    """Keep diffusion weights hot on a shelf that every worker on the node can reach."""
    context.obj = Client(socket=socket, store=store)


def verb(name: str, *, example: str, cls: type[click.Command] = click.Command) -> Callable[[Verb], click.Command]:
    """Makes a command of a function. Its docstring is the help, to which `example` is added."""

    def make(function: Verb) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, output_format: str, **given: Any) -> None:
            out = Output(output_format)
            try:
                code = function(out, *args, **given)
            except HotshelfError as error:
                out.failed(error)
                code = error.exit_code
            click.get_current_context().exit(code or 0)

        chosen = click.option(
            "--format",
            "output_format",
            type=click.Choice(FORMATS),
            default="human",
            show_default=True,
            help="How to print the result; quiet prints the least that is of use.",
        )
        return click.command(name, cls=cls, epilog=f"\b\nExample:\n  {example}")(chosen(run))

    return make


def client() -> Client:
    """The client of this invocation."""
    found = click.get_current_context().find_object(Client)
    return found if found is not None else Client()


def needs_daemon(missing: ModuleNotFoundError) -> HotshelfError:
    """What to say when a verb needs the daemon's package and a library of it is not installed."""
    return BadConfiguration(f"this needs {missing.name}, which is not installed", hint="pip install 'hotshelf[daemon]'")


class Duration(click.ParamType[float]):
    """Seconds, from ``90``, ``90s``, ``30m``, ``1h`` or ``2d``."""

    name = "duration"
    _FORM = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)\Z")
    _SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}  # noqa: RUF012 - read only

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = self._FORM.match(str(value))
        if found is None or float(found[1]) == 0:
            self.fail(f"{value!r} is no duration such as 90s, 30m, 1h or 2d", param, ctx)
        return float(found[1]) * self._SECONDS[found[2]]
