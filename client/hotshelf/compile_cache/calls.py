"""The calls, by the names, arguments and answers of b10-transfer's README."""

from __future__ import annotations

import calendar
import logging
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from hotshelf import compiling
from hotshelf.client import Client, default
from hotshelf.compile_cache import local, vllm
from hotshelf.compile_cache.cache import Cache
from hotshelf.compile_cache.program import Program, calling
from hotshelf.compile_cache.settings import Settings
from hotshelf.compile_cache.status import CacheError, OperationStatus
from hotshelf.compiling import inductor
from hotshelf_shared.bundle import BundleName
from hotshelf_shared.errors import HotshelfError

log = logging.getLogger("b10_transfer")
_MIB = 1024 * 1024
T = TypeVar("T")


def load_compile_cache() -> OperationStatus:
    """Puts what was saved for this environment and model where torch.compile finds it. Never raises."""
    return _answer("loading the compile cache", lambda: cache_of_model().load())


def save_compile_cache() -> OperationStatus:
    """Shares what torch.compile made here with every process of this environment and model. Never raises."""
    return _answer("saving the compile cache", lambda: cache_of_model().save())


def save_vllm_compile_cache() -> None:
    """Loads vLLM's cache, waits until its server on port 8000 is ready, and saves what it compiled. Never raises."""
    _answer("carrying vLLM's compile cache", _serve_vllm)


def clear_local_cache() -> bool:
    """Deletes inductor's directory's contents. True when it is empty now, or never was there; False, and a log line, else."""
    try:
        local.clear(inductor.folder())
    except (CacheError, OSError, ImportError) as error:
        log.error("the local compile cache was not cleared: %s", error)  # noqa: TRY400 - the reason is the message
        return False
    return True


def get_cache_info() -> dict[str, Any]:
    """The state of the local and the shared cache. Raises CacheError only when torch or a setting is unusable."""
    cache = _checked(cache_of_model)
    return info_of(cache)


def list_available_caches() -> dict[str, Any]:
    """Every cache on the shelf that this process may load, of all environments. Raises CacheError as `get_cache_info` does."""
    cache = _checked(cache_of_model)
    return list_for(cache)


# ---- the same, for a cache that the command line names


def cache_of_model(client: Client = default, *, program: Program | None = None) -> Cache:
    """Of the model whose code calls, or of `program`. Raises CacheValidationError, HotshelfError without torch."""
    settings = Settings.read(os.environ)
    return Cache(
        client, settings, _name(settings, program or named(settings) or calling()), compiling.places(), inductor.INDUCTOR
    )


def cache_of_vllm(client: Client = default, *, program: Program | None = None) -> Cache:
    """Of the vLLM beside us: its own directory with inductor's. Raises as `cache_of_model` does."""
    settings, folder = Settings.read(os.environ), vllm.folder(os.environ)
    name = _name(settings, program or named(settings) or Program(vllm.PLACE, ""), vllm=str(folder))
    return Cache(client, settings, name, {**compiling.places(), vllm.PLACE: folder}, vllm.PLACE)


def named(settings: Settings) -> Program | None:
    """The model that the environment names."""
    return Program(settings.namespace, "") if settings.namespace else None


def _name(settings: Settings, program: Program, **more: str) -> BundleName:
    told = {"program": program.digest, "place": settings.place, **more}
    return BundleName(compiling.environment_key(), compiling.graph_key(program.name, told))


def _serve_vllm() -> OperationStatus:
    return vllm.serve(cache_of_vllm(), url=vllm.url(os.environ), timeout_s=vllm.TIMEOUT_S)


def info_of(cache: Cache) -> dict[str, Any]:
    size, shared = cache.local_size, cache.is_shared
    shelf = _or_none(lambda: cache.shelf_size) if shared else None
    info: dict[str, Any] = {
        "environment_key": cache.name.environment_key,
        "local_cache_exists": size > 0,
        "b10fs_enabled": shared,
        "b10fs_cache_exists": shelf is not None,
    }
    if size:
        info["local_cache_size_mb"] = size / _MIB
    if shelf is not None:
        info["b10fs_cache_size_mb"] = shelf / _MIB
    return info


def list_for(cache: Cache) -> dict[str, Any]:
    shared = cache.is_shared
    found = _or_none(lambda: _listed(cache)) if shared else None
    caches = found or []
    return {
        "caches": caches,
        "current_environment": cache.name.environment_key,
        "total_caches": len(caches),
        "current_cache_exists": any(one["filename"] == str(cache.name) for one in caches),
        "b10fs_enabled": shared,
    }


def _listed(cache: Cache) -> list[dict[str, Any]]:
    return [
        {
            "filename": f"{told['environment_key']}/{told['graph_key']}",
            "environment_key": told["environment_key"],
            "size_mb": int(told["size"]) / _MIB,
            "is_current_environment": told["environment_key"] == cache.name.environment_key,
            "created_time": float(calendar.timegm(time.strptime(str(told["created_at"]), "%Y-%m-%d %H:%M:%S"))),
        }
        for told in cache.client.bundles()
    ]


def _or_none(look: Callable[[], T]) -> T | None:
    try:
        return look()
    except HotshelfError as error:
        log.warning("the daemon did not say what it has: %s", error)
        return None


def _checked(make: Callable[[], Cache]) -> Cache:
    try:
        return make()
    except HotshelfError as error:
        raise CacheError(str(error)) from error


def _answer(doing: str, operation: Callable[[], OperationStatus]) -> OperationStatus:
    """Whatever goes wrong is a line in the log and ERROR: a model that cannot load a cache compiles."""
    try:
        return operation()
    except (CacheError, HotshelfError, OSError) as error:
        log.error("%s failed: %s", doing, error)  # noqa: TRY400 - the reason is the message
    except Exception:
        log.exception("%s failed", doing)
    return OperationStatus.ERROR
