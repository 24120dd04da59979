"""hotshelfd's command line."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import click

from hotshelf_daemon import app, logs
from hotshelf_daemon.config import hand_on, handed_on, load
from hotshelf_shared.errors import HotshelfError

log = logging.getLogger(__name__)
#: Group-readable, private to everybody else: workers of the store's group read what is held.
UMASK = 0o027


@click.command(epilog="Example: hotshelfd --config /etc/hotshelf/config.yaml --store /shelf")
@click.option("--config", metavar="FILE", help="YAML configuration (HOTSHELF_CONFIG).")
@click.option("--store", metavar="DIR", help="The shared volume (PIPELINE_STORE).")
@click.option("--socket", metavar="PATH", help="The Unix socket to serve (HOTSHELF_SOCKET).")
@click.option("--listen", metavar="HOST:PORT", help="Where /livez, /readyz and /metrics are; empty for nowhere.")
@click.option("--idle-exit", type=float, metavar="SECONDS", help="End this long after the last connection is gone.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="How much to log.")
@click.version_option(app.hotshelf_version(), prog_name="hotshelfd")
def hotshelfd(**flags: str | float | None) -> int:
    """Keep weights hot on a shared volume and lease them to workers over a Unix socket."""
    os.umask(UMASK)
    try:
        given = {"idle_exit_s" if name == "idle_exit" else name: value for name, value in flags.items()}
        loaded = load(given, text=handed_on(os.environ))
        logs.configure(loaded.settings.log_level, loaded.settings.secrets())
        for warning in loaded.warnings:
            log.warning("the configuration holds what is left out", extra={"why": warning})
        again = asyncio.run(app.serve(loaded, lambda: load({**given, "config": loaded.path})))
    except HotshelfError as error:
        print(f"hotshelfd: {error.message}\n  {error.hint}", file=sys.stderr)
        return error.exit_code
    if again is not None:
        if again.text is not None:
            hand_on(again.text, os.environ)
        # The same process in a new skin: no thread, descriptor or connection of the old one is left.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ourselves
    return 0
