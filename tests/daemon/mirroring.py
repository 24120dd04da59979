"""The hub's mirror for tests: what a daemon with one is told, and questions to it as they stand on the wire."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from typing import Any

from tests import objects
from tests.daemon.conftest import SEGMENT
from tests.daemon_process import Daemon
from tests.servers.hub import Hub
from tests.servers.ports import free_ports

REPO, TOKEN = "org/name", "mirror-canary-81d0-long-enough"
TREE = objects.model("mirror", unet=5 * SEGMENT + 1_000)
UNET = "unet/diffusion_pytorch_model.safetensors"
Start = Callable[..., Daemon]


def settings(hub: Hub) -> dict[str, Any]:
    return {
        "hf": {"endpoint": hub.endpoint_url},
        "hub_mirror": {"token": TOKEN},
        "page_listen": f"127.0.0.1:{free_ports(1)[0]}",
        "fetch": {"segment_bytes": SEGMENT, "attempts": 2},
        "revalidate_s": 600,
    }


def asked(
    daemon: Daemon, path: str, *, method: str = "GET", token: str | None = TOKEN, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(daemon.settings["page_listen"], timeout=60)
    try:
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, headers={**told, **({"Authorization": f"Bearer {token}"} if token else {})})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()
