"""Handing in: blobs by their digest, then the pipeline or bundle they make. What `Client` does with the transport's uploads."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hotshelf.transport import Transport, ask
from hotshelf_shared.bundle import BundleName
from hotshelf_shared.bundle import environment_key as check_environment_key
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import HotshelfError, InvalidRequest
from hotshelf_shared.manifest import Manifest
from hotshelf_shared.recipe import Recipe

LOOK_TIMEOUT_S = 30.0
#: The daemon reads the tree's documents and lays it out before it answers.
BIND_TIMEOUT_S = 120.0


def has_blob(transport: Transport, digest: str) -> bool:
    """Whether the daemon holds it; if so it stays for a while, for whoever asks to bind it."""
    deadline = time.monotonic() + LOOK_TIMEOUT_S
    with transport.connect(deadline) as channel:
        return channel.head(f"/v1/blobs/{Digest.parse(digest)}", deadline=deadline) is not None


def put_blob(transport: Transport, digest: str, path: str | os.PathLike[str], *, timeout: float) -> bool:
    """Sends a file. False when the daemon held it already, and then hardly a byte is sent."""
    deadline = time.monotonic() + timeout
    with _opened(path) as fd, transport.connect(deadline) as channel:
        status = channel.upload(f"/v1/blobs/{Digest.parse(digest)}", fd, os.fstat(fd).st_size, deadline=deadline)
    return status == 201


def put_pipeline(
    transport: Transport,
    key: str,
    recipe: Recipe | Mapping[str, Any],
    manifest: Manifest | Mapping[str, Any],
    build: Mapping[str, Any] | None,
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "recipe": recipe.to_json() if isinstance(recipe, Recipe) else dict(recipe),
        "manifest": manifest.to_json() if isinstance(manifest, Manifest) else dict(manifest),
    }
    if build is not None:
        body["build"] = dict(build)
    return _answer(ask(transport, "PUT", _at(key), body, deadline=time.monotonic() + BIND_TIMEOUT_S), f"PUT {_at(key)}")


def pipeline(transport: Transport, key: str) -> dict[str, Any]:
    return _answer(ask(transport, "GET", _at(key), deadline=time.monotonic() + LOOK_TIMEOUT_S), f"GET {_at(key)}")


def put_bundle(
    transport: Transport, environment_key: str, graph_key: str, archive: str | os.PathLike[str], *, timeout: float
) -> dict[str, Any]:
    at = _bundle_at(environment_key, graph_key)
    with _opened(archive) as fd:
        digest, size = Digest.of_fd(fd), os.fstat(fd).st_size
    if not has_blob(transport, digest):
        put_blob(transport, digest, archive, timeout=timeout)
    body = {"digest": digest, "size": size}
    return _answer(ask(transport, "PUT", at, body, deadline=time.monotonic() + BIND_TIMEOUT_S), f"PUT {at}")


def bundle(transport: Transport, environment_key: str, graph_key: str) -> dict[str, Any]:
    at = _bundle_at(environment_key, graph_key)
    return _answer(ask(transport, "GET", at, deadline=time.monotonic() + LOOK_TIMEOUT_S), f"GET {at}")


def bundles(transport: Transport, environment_key: str | None) -> list[dict[str, Any]]:
    at = "/v1/bundles" if environment_key is None else f"/v1/bundles/{check_environment_key(environment_key)}"
    answer = _answer(ask(transport, "GET", at, deadline=time.monotonic() + LOOK_TIMEOUT_S), f"GET {at}")
    if not isinstance(found := answer.get("bundles"), list):
        raise HotshelfError(f"the answer to GET {at} has no bundles")
    return found


def _bundle_at(environment_key: str, graph_key: str) -> str:
    return f"/v1/bundles/{BundleName.of(environment_key, graph_key)}"


def _at(key: str) -> str:
    if not key.isalnum() or not key.isascii():
        raise InvalidRequest(f"not a pipeline's key: {key[:80]!r}", hint="It is 64 hex digits: Recipe.key.")
    return f"/v1/pipelines/{key}"


def _answer(answer: object, what: str) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise HotshelfError(f"the answer to {what} is no JSON object")
    return answer


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[int]:
    """A regular file's descriptor. Raises InvalidRequest."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidRequest(f"{os.fspath(path)} cannot be read: {error.strerror}", hint="Name a file to hand in.") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidRequest(f"{os.fspath(path)} is no regular file", hint="Name a file to hand in.")
        yield fd
    finally:
        os.close(fd)
