"""b10-transfer's functions on our shelf: what torch.compile made in one process is there when the next one starts.

    from hotshelf.compile_cache import OperationStatus, load_compile_cache, save_compile_cache

Importing this needs the standard library only. Nothing here raises because a cache could not be carried: a status says so, and
the logger ``b10_transfer`` says why.
"""

from __future__ import annotations

from hotshelf.compile_cache.calls import (
    clear_local_cache,
    get_cache_info,
    list_available_caches,
    load_compile_cache,
    save_compile_cache,
    save_vllm_compile_cache,
)
from hotshelf.compile_cache.status import CacheError, CacheOperationInterrupted, CacheValidationError, OperationStatus

__all__ = [
    "CacheError",
    "CacheOperationInterrupted",
    "CacheValidationError",
    "OperationStatus",
    "clear_local_cache",
    "get_cache_info",
    "list_available_caches",
    "load_compile_cache",
    "save_compile_cache",
    "save_vllm_compile_cache",
]
