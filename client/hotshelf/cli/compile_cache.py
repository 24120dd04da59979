"""`hotshelf compile-cache`: what torch.compile made, carried from one process to the next."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from hotshelf import compiling
from hotshelf.cli.output import Output, size, table
from hotshelf.cli.shelf import DRY_RUN
from hotshelf.cli.verb import Duration, client, verb
from hotshelf.compile_cache import calls, local, vllm
from hotshelf.compile_cache.cache import Cache
from hotshelf.compile_cache.program import Program, of_file
from hotshelf.compile_cache.settings import Settings
from hotshelf.compile_cache.status import CacheError, CacheOperationInterrupted, CacheValidationError, OperationStatus
from hotshelf.compiling import inductor
from hotshelf_shared.errors import HotshelfError, InsufficientSpace, InvalidRequest

_NOT_FOUND = 3
_MIB = 1024 * 1024
_SAID = {
    OperationStatus.SUCCESS: {"load": "loaded {}", "save": "saved {}", "serve": "saved {}"},
    OperationStatus.SKIPPED: {
        "load": "there is a local cache already: {} was not loaded",
        "save": "the shelf has {} already",
        "serve": "the shelf has {} already",
    },
    OperationStatus.DOES_NOT_EXIST: {"load": "nobody has saved {} yet"},
}

_NAMESPACE = click.option("--namespace", metavar="NAME", help="Which model (HOTSHELF_BUNDLE_NAMESPACE).")
_PROGRAM = click.option(
    "--program", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help="The model whose code is FILE."
)
_VLLM = click.option("--vllm", "of_vllm", is_flag=True, help="vLLM's cache instead of torch's alone.")


@click.group("compile-cache", epilog="\b\nExample:\n  hotshelf compile-cache info")
def compile_cache() -> None:
    """Share what torch.compile made. Models are told apart by a namespace, or by the code that saves them."""


@verb("info", example="hotshelf compile-cache info --program model.py")
@_NAMESPACE
@_PROGRAM
@_VLLM
def info(out: Output, *, namespace: str | None, program: str | None, of_vllm: bool) -> None:
    """Show this environment, the local cache and the one on the shelf."""
    with _errors():
        cache = _cache(namespace, program, of_vllm=of_vllm)
        found = calls.info_of(cache)
        facts = compiling.describe()
    where = {name: str(path) for name, path in cache.where.items()}
    body = {**found, "bundle": str(cache.name), "local": where, "facts": facts}
    human = [
        f"environment  {found['environment_key']}",
        f"bundle       {cache.name}",
        *(f"{name:<12} {path}" for name, path in where.items()),
        f"local        {_sized(found.get('local_cache_size_mb'))}",
        f"shelf        {_sized(found.get('b10fs_cache_size_mb')) if found['b10fs_enabled'] else 'no daemon, or switched off'}",
        "",
        *table(("fact", "value"), facts.items()),
    ]
    out.result(body, human=human, quiet=[found["environment_key"]])


@verb("ls", example="hotshelf compile-cache ls --format json")
def ls(out: Output) -> None:
    """List the caches on the shelf that this user may load, of all environments; * marks this one."""
    with _errors():
        found = calls.list_for(_cache("any", None, of_vllm=False))
    rows = [
        ("*" if one["is_current_environment"] else "", one["filename"], size(one["size_mb"] * _MIB)) for one in found["caches"]
    ]
    out.result(found, human=table(("", "bundle", "size"), rows), quiet=[one["filename"] for one in found["caches"]])
    if not rows:
        out.note("There is none." if found["b10fs_enabled"] else "The daemon does not answer, or BASETEN_FS_ENABLED is 0.")


@verb("load", example="hotshelf compile-cache load --namespace sdxl && python model.py")
@_NAMESPACE
@_PROGRAM
@_VLLM
def load(out: Output, *, namespace: str | None, program: str | None, of_vllm: bool) -> int:
    """Put a saved cache where torch.compile finds it. Ends with 3 when there is none."""
    cache = _named(namespace, program, of_vllm=of_vllm)
    return _told(out, cache, "load", cache.load)


@verb("save", example="hotshelf compile-cache save --namespace sdxl")
@_NAMESPACE
@_PROGRAM
@_VLLM
def save(out: Output, *, namespace: str | None, program: str | None, of_vllm: bool) -> int:
    """Put this machine's local cache on the shelf. The first one saved under a name stays."""
    cache = _named(namespace, program, of_vllm=of_vllm)
    return _told(out, cache, "save", cache.save)


@verb("clear", example="hotshelf compile-cache clear --dry-run")
@DRY_RUN
def clear(out: Output, *, dry_run: bool) -> None:
    """Delete what is in inductor's local directory; nothing on the shelf, and no directory that is not inductor's."""
    folder = inductor.folder()
    with _errors():
        freed = local.clear(folder, dry_run=dry_run)
    body = {"directory": str(folder), "bytes": freed, "dry_run": dry_run}
    out.result(body, human=[f"{'would delete' if dry_run else 'deleted'} {size(freed)} in {folder}"])


@verb("serve", example="hotshelf compile-cache serve --namespace llama & vllm serve meta-llama/Llama-3.1-8B")
@_NAMESPACE
@click.option("--url", metavar="URL", help="What answers 200 when vLLM is ready (HOTSHELF_VLLM_URL).")
@click.option("--timeout", metavar="TIME", type=Duration(), default="1h", show_default=True, help="Give up after this.")
def serve(out: Output, *, namespace: str | None, url: str | None, timeout: float) -> int:
    """Load vLLM's compile cache, wait until its server is ready, and save what it compiled.

    It goes beside vLLM, under the same user. As b10-compile-cache it is b10-transfer's command.
    """
    signal.signal(signal.SIGTERM, _stopped)
    if out.format == "human":
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    with _errors():
        cache = _cache(namespace, None, of_vllm=True)
    return _told(out, cache, "serve", lambda: vllm.serve(cache, url=url or vllm.url(os.environ), timeout_s=timeout))


def _stopped(number: int, _frame: object) -> None:
    """As the signal would, but what is half packed is cleared away on the way out."""
    raise SystemExit(128 + number)


def _named(namespace: str | None, program: str | None, *, of_vllm: bool) -> Cache:
    """Raises InvalidRequest when nothing says which model is meant."""
    with _errors():
        if not (namespace or program or of_vllm or Settings.read(os.environ).namespace):
            raise InvalidRequest(
                "nothing says which model's cache is meant",
                hint="Give --namespace NAME (or HOTSHELF_BUNDLE_NAMESPACE), --program FILE or --vllm.",
            )
        return _cache(namespace, program, of_vllm=of_vllm)


def _cache(namespace: str | None, program: str | None, *, of_vllm: bool) -> Cache:
    """Where nothing is named: of the environment's namespace, or of none in particular."""
    given = Program(namespace, "") if namespace else of_file(program) if program else None
    if of_vllm:
        return calls.cache_of_vllm(client(), program=given)
    return calls.cache_of_model(client(), program=given or calls.named(Settings.read(os.environ)) or Program("none", ""))


def _told(out: Output, cache: Cache, doing: str, operation: Callable[[], OperationStatus]) -> int:
    with _errors():
        status = operation()
    body: dict[str, Any] = {"status": status.value, "bundle": str(cache.name)}
    out.result(body, human=[_SAID[status][doing].format(f"bundle:{cache.name}")], quiet=[status.value])
    return _NOT_FOUND if status is OperationStatus.DOES_NOT_EXIST else 0


def _sized(mib: float | None) -> str:
    return "none" if mib is None else size(mib * _MIB)


@contextmanager
def _errors() -> Iterator[None]:
    """b10-transfer's exceptions as ours, whose codes the command ends with."""
    try:
        yield
    except CacheValidationError as error:
        raise InvalidRequest(str(error)) from error
    except CacheOperationInterrupted as error:
        raise InsufficientSpace(str(error), hint="Free room there, or set LOCAL_WORK_DIR to another disk.") from error
    except CacheError as error:
        if isinstance(error.__cause__, HotshelfError):
            raise error.__cause__ from error
        raise HotshelfError(str(error)) from error
    except OSError as error:
        raise HotshelfError(f"the local cache cannot be used: {error.strerror or error}", hint="Look at the disk.") from error


for command in (info, ls, load, save, clear, serve):
    compile_cache.add_command(command)
VERBS = (compile_cache,)
