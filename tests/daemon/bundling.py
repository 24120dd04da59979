"""A worker that shares compile caches, and what a burglar would do to a bundle on the volume or in the index."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from tests.daemon.workers import Worker
from tests.daemon_process import Daemon, Reply
from tests.objects import Digest

NAME = "h100-cuda12.8-torch2.13/9f2c"
AT = f"/v1/bundles/{NAME}"
BUNDLE = f"bundle:{NAME}"


def bind(worker: Worker, data: bytes, at: str = AT, **more: Any) -> Reply:
    """Binds an archive that was handed in."""
    return worker.ask("PUT", at, {"digest": Digest.of(data), "size": len(data), **more})


def share(worker: Worker, data: bytes, at: str = AT) -> Any:
    """Hands it in and binds it; what the daemon says of the new bundle."""
    reply = worker.put(data)
    assert reply.status in (201, 204), reply
    reply = bind(worker, data, at)
    assert reply.status == 201, reply
    return reply.body


def folder_of(daemon: Daemon, name: str = NAME) -> pathlib.Path:
    """The only folder of that name."""
    (folder,) = (daemon.store / "bundles" / name).iterdir()
    return folder


def document_of(daemon: Daemon) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((folder_of(daemon) / "bundle.json").read_bytes())
    return body


def forge(folder: pathlib.Path, **changed: Any) -> None:
    """The same document with other fields, in its canonical form, and with the signature it had."""
    path = folder / "bundle.json"
    body = {**json.loads(path.read_bytes()), **changed}
    path.unlink()
    path.write_bytes(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
