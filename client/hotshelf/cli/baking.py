"""`hotshelf bake`: a shelf filled while an image is built, by the same daemon that will serve it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import click

from hotshelf.cli import progress
from hotshelf.cli.output import Output, short, size, table
from hotshelf.cli.verb import Duration, needs_daemon, verb
from hotshelf.client import Client
from hotshelf_shared.errors import BadConfiguration, DaemonUnavailable, HotshelfError

START_WAIT_S = 60.0
STOP_WAIT_S = 120.0
#: If this process is killed the daemon ends by itself, seconds after it.
IDLE_EXIT_S = 10
LOG_LINES = 5


@verb("bake", example="hotshelf bake config.yaml /shelf")
@click.argument("config_file", metavar="CONFIG", type=click.Path(exists=True, dir_okay=False))
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
@click.option(
    "--timeout", metavar="TIME", type=Duration(), default="1h", show_default=True, help="Give up after this, for each."
)
def bake(out: Output, *, config_file: str, directory: str, timeout: float) -> None:
    """Fetch everything that CONFIG names into the store DIR, which a daemon of the finished image serves at once."""
    store = os.path.abspath(directory)
    names = _names(config_file, store)
    baked = []
    # All are held until the last one is there: what does not fit together is not to be found out at night.
    with _daemon(config_file, store) as client, progress.shown(out) as show, ExitStack() as held:
        for name in names:
            lease = held.enter_context(client.acquire(name, timeout=timeout, on_progress=show))
            baked.append((name, lease.revision, sum(entry.size for entry in lease.files.values())))
            for skipped in lease.skipped:
                out.note(f"{name}: left out {skipped.path}: {skipped.reason}")
    from hotshelf_daemon.store.keys import NAME

    with suppress(FileNotFoundError):
        os.unlink(os.path.join(store, NAME))  # else everybody who has the image could sign for its daemons
    body = {"store": store, "baked": [{"name": name, "revision": rev, "size": held} for name, rev, held in baked]}
    human = table(("name", "revision", "size"), [(name, short(rev), size(held)) for name, rev, held in baked])
    out.result(body, human=human, quiet=(f"{name}\t{rev}" for name, rev, _ in baked))


def _names(config_file: str, store: str) -> list[str]:
    try:
        import hotshelf_daemon.origin  # noqa: F401 - the part of the daemon with the most to install
        from hotshelf_daemon.config import load
    except ModuleNotFoundError as missing:
        raise needs_daemon(missing) from missing
    settings = load({"config": config_file, "store": store}, os.environ).settings
    if os.path.commonpath([store, settings.index_path]) != store:
        hint = "Leave index.path out: without the index every blob would be hashed anew at the image's first start."
        raise BadConfiguration(f"index.path is {settings.index_path}, which is not part of {store}", hint=hint)
    names = list(settings.names)
    if not names:
        raise BadConfiguration(f"{config_file} names nothing to bake", hint="Name sources under `models:` or `loras:`.")
    return names


@contextmanager
def _daemon(config_file: str, store: str) -> Iterator[Client]:
    """One of its own, that nobody else can reach; stopped cleanly, so that what it leaves opens without it."""
    with tempfile.TemporaryDirectory(prefix="hs-") as own, open(f"{own}/log", "wb") as log:
        argv = [sys.executable, "-m", "hotshelf_daemon", "--config", config_file, "--store", store]
        argv += ["--socket", f"{own}/s", "--listen", "", "--idle-exit", str(IDLE_EXIT_S)]
        running = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            client = Client(socket=f"{own}/s", store=store, autostart=False)
            _wait(client, running, Path(own, "log"))
            yield client
            _stop(running, Path(own, "log"))
        finally:
            running.kill()
            running.wait()


def _wait(client: Client, running: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_WAIT_S
    while True:
        try:
            client.health()
        except DaemonUnavailable:
            if running.poll() is not None:
                raise BadConfiguration(f"hotshelfd does not start: {_end_of(log)}") from None
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)
        else:
            return


def _stop(running: subprocess.Popen[bytes], log: Path) -> None:
    running.terminate()
    with suppress(subprocess.TimeoutExpired):
        if running.wait(STOP_WAIT_S) == 0:
            return
    raise HotshelfError(f"the daemon does not end as it should ({running.poll()}): {_end_of(log)}", hint="Bake again.")


def _end_of(log: Path) -> str:
    return " ".join(log.read_text(errors="replace").split("\n")[-LOG_LINES:]).strip()


VERBS = (bake,)
