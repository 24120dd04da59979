"""vLLM: its compile cache is loaded before it starts, and saved once its server is ready. It knows nothing of us."""

from __future__ import annotations

import http.client
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from hotshelf.compile_cache.cache import Cache
from hotshelf.compile_cache.status import CacheError, CacheValidationError, OperationStatus

log = logging.getLogger("b10_transfer")
PLACE = "vllm"
_URL = "http://localhost:8000/health"
#: How long a model may take to load, compile and capture its graphs.
TIMEOUT_S = 3_600.0
_ANSWER_S = 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0


def url(environment: Mapping[str, str]) -> str:
    """What answers 200 when the server is ready: `HOTSHELF_VLLM_URL`, else vLLM's own port."""
    return environment.get("HOTSHELF_VLLM_URL") or _URL


def folder(environment: Mapping[str, str]) -> Path:
    """Where vLLM keeps what it compiles. Its files name others by their whole path: the path is part of the bundle's name."""
    home = environment.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    root = environment.get("VLLM_CACHE_ROOT") or os.path.join(home, "vllm")
    return Path(os.path.abspath(os.path.expanduser(root))) / "torch_compile_cache"


def serve(cache: Cache, *, url: str, timeout_s: float) -> OperationStatus:
    """Loads; waits for the server; saves what it compiled unless that came from the shelf. Raises CacheError."""
    try:
        loaded = cache.load(wait=True)
    except CacheError as error:  # saving may still go well, and then the next start is the faster one
        log.warning("the compile cache was not loaded: %s", error)
        loaded = OperationStatus.ERROR
    if not is_ready(url, timeout_s=timeout_s):
        raise CacheError(f"{url} was not ready within {timeout_s:.0f} s: nothing was saved")
    if loaded is OperationStatus.SUCCESS:
        return OperationStatus.SKIPPED
    return cache.save()


def is_ready(url: str, *, timeout_s: float) -> bool:
    """Whether the URL answers 200 within that time; it is asked ever less often. Raises CacheValidationError."""
    at = urlsplit(url)
    if at.scheme != "http" or not at.hostname:
        raise CacheValidationError(f"{url[:80]!r} is no http:// URL of a server")
    deadline, pause = time.monotonic() + timeout_s, _FIRST_PAUSE_S
    while not _answers(at.hostname, at.port or 80, at.path or "/"):
        if (left := deadline - time.monotonic()) <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, _LONGEST_PAUSE_S)
    return True


def _answers(host: str, port: int, path: str) -> bool:
    """Straight to the server: a proxy of the environment knows no localhost."""
    connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
