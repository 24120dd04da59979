"""b10-transfer: `import hotshelf.adapters.b10_transfer as b10_transfer` is the whole migration."""

from hotshelf.compile_cache import (
    CacheError,
    CacheOperationInterrupted,
    CacheValidationError,
    OperationStatus,
    clear_local_cache,
    get_cache_info,
    list_available_caches,
    load_compile_cache,
    save_compile_cache,
    save_vllm_compile_cache,
)

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
