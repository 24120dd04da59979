"""The thin client of hotshelf: ask the daemon for weights, get verified local paths.

Importing this loads nothing but itself: every name below arrives on first use, so a worker pays for what it calls. The
module functions go to one process-wide `Client`, which reads ``HOTSHELF_SOCKET`` and the rest when first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's constant, without the 15 ms that importing typing takes

if TYPE_CHECKING:
    from hotshelf import errors
    from hotshelf.aio import AsyncClient
    from hotshelf.client import Client, acquire, evict, pin, refresh, rollback, snapshots, status, unpin, verify
    from hotshelf.lease import Lease, Leases
    from hotshelf.pipelines import PipelineCache, explain, load_pipeline, swap_lora
    from hotshelf.warming import Warmed

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Client",
    "Lease",
    "Leases",
    "PipelineCache",
    "Warmed",
    "acquire",
    "errors",
    "evict",
    "explain",
    "load_pipeline",
    "pin",
    "refresh",
    "rollback",
    "snapshots",
    "status",
    "swap_lora",
    "unpin",
    "verify",
]

_HOMES = {
    "AsyncClient": "aio",
    "Client": "client",
    "Lease": "lease",
    "Leases": "lease",
    "PipelineCache": "pipelines",
    "Warmed": "warming",
    "acquire": "client",
    "evict": "client",
    "explain": "pipelines",
    "load_pipeline": "pipelines",
    "pin": "client",
    "refresh": "client",
    "rollback": "client",
    "snapshots": "client",
    "status": "client",
    "swap_lora": "pipelines",
    "unpin": "client",
    "verify": "client",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "errors":
        return import_module("hotshelf.errors")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"hotshelf.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
