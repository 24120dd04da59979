"""Writes such a store: `PYTHONPATH=<that version's packages> python -m tests.upgrades.writing MIGRATION`.

To be run once, before a migration is added, with the last version that did not know it; MIGRATION is that version's newest.
"""

from __future__ import annotations

import pathlib
import sys
import tarfile
import tempfile

from hotshelf_shared.recipe import Recipe
from tests import objects
from tests.daemon_process import Daemon
from tests.faults.origin_cases import refuse
from tests.faults.scripted_origin import ScriptedOrigin
from tests.objects import Digest

STORES = pathlib.Path(__file__).with_name("stores")
#: An index names the endpoint that a download came from, so the origin must be found there again.
ADDRESS = ("127.77.0.1", 8333)
ENDPOINT = "http://{}:{}".format(*ADDRESS)
SEGMENT = 4 << 10
KEPT = objects.model("kept", unet=2_000, text_encoder=900, vae=500)
PINNED = objects.model("pinned", unet=2_100, text_encoder=900) | {
    path: data for path, data in KEPT.items() if path.startswith("vae/")
}
HALF = {"half.safetensors": objects.safetensors("half", 3 * SEGMENT + 1)}
BUILT = objects.model("built", unet=900, text_encoder=400, vae=400)
RECIPE = Recipe(base=Digest.of(b"base"), dtype="float16")


def settings() -> dict[str, object]:
    """What the daemons on either side of an upgrade are told."""
    scripted = {"endpoint_url": ENDPOINT, "addressing_style": "path", "unsigned": True}
    return {
        "origins": {"scripted": scripted}, "fetch": {"segment_bytes": SEGMENT, "connections": 1, "attempts": 1},
        "models": {"pinned": {"source": "s3://weights/pinned", "pin": False}}, "revalidate_s": 3_600, "budget": "100%",
    }  # fmt: skip


def publish(origin: ScriptedOrigin) -> None:
    trees = {"kept": KEPT, "pinned": PINNED, "half": HALF}
    origin.objects |= {f"{name}/{path}": data for name, tree in trees.items() for path, data in tree.items()}


def live(daemon: Daemon, origin: ScriptedOrigin) -> None:
    """A day of a daemon, after which it is killed."""
    for name in ("kept", "pinned"):
        reply = daemon.acquire(f"s3://weights/{name}")
        assert reply.status == 200, reply
    assert daemon.call("PUT", "/v1/pins/pinned").status < 300
    for data in BUILT.values():
        told = daemon.call("PUT", f"/v1/blobs/{Digest.of(data)}", data)
    if told.status < 300:  # the first versions took nothing in
        body = {"recipe": RECIPE.to_json(), "manifest": objects.manifest_of(BUILT).to_json()}
        reply = daemon.call("PUT", f"/v1/pipelines/{RECIPE.key}", body)
        assert reply.status < 300, reply
    origin.misdeed(refuse(500, "InternalError"), when=lambda ask: ask.range is not None and ask.range[0] >= SEGMENT)
    assert daemon.acquire("s3://weights/half").status == 503
    daemon.kill9()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ScriptedOrigin(at=ADDRESS) as origin:
        publish(origin)
        with Daemon(pathlib.Path(folder), **settings()) as daemon:
            live(daemon, origin)
            STORES.mkdir(exist_ok=True)
            with tarfile.open(STORES / f"{sys.argv[1]}.tar.xz", "w:xz") as archive:
                archive.add(daemon.store, "store")


if __name__ == "__main__":
    main()
