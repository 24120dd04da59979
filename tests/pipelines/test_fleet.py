"""Built once in the fleet: a node that has nothing fetches what another built, and not what that was built from."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest

import hotshelf
from hotshelf import PipelineCache
from tests import objects
from tests.daemon.looking import rows, value
from tests.daemon_process import Daemon
from tests.pipelines.conftest import Library, client_of, draw
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

pytestmark = pytest.mark.torch
Node = Callable[[str], Daemon]


@pytest.fixture
def place(seaweedfs: SeaweedFS, bucket: str, prefix: str) -> Callable[[str, pathlib.Path], str]:
    """What `hotshelf push` leaves of a folder or file: content-named blobs, a manifest, and the pointer to it."""

    def put(name: str, path: pathlib.Path) -> str:
        tree = objects.read(path) if path.is_dir() else {path.name: path.read_bytes()}
        objects.put(seaweedfs, bucket, f"{prefix}/{name}", objects.published(tree))
        return f"s3://{bucket}/{prefix}/{name}"

    return put


@pytest.fixture
def node(make_daemon: Callable[..., Daemon], seaweedfs: SeaweedFS, recorder: Recorder, bucket: str, prefix: str) -> Node:
    origins = {"weed": seaweedfs.settings(bucket, endpoint_url=recorder.endpoint_url)}
    return lambda name: make_daemon(name, origins=origins, publish={"pipelines": f"s3://{bucket}/{prefix}/built"})


def await_published(daemon: Daemon) -> None:
    query = "SELECT count(*) FROM v_pipelines WHERE published_to IS NOT NULL"
    wait_until(lambda: value(daemon, query), timeout_s=60, what="the pipeline to be published")


@pytest.mark.parametrize("mode", ["fuse", "adapters"])
def test_a_fresh_node_fetches_what_was_built_and_not_what_it_was_built_from(
    library: Library, node: Node, place: Callable[[str, pathlib.Path], str], mode: str
) -> None:
    base = place("sd", library.sd)
    style = place("style", library.lora("sd", "kohya", seed=5, components=("unet", "text_encoder")))
    vae = place("other", library.base("sd", seed=1))
    order: dict[str, Any] = {
        "loras": [{"path": style, "scale": 0.7}], "lora_mode": mode, "dtype": "bfloat16",
        "components": {"vae": {"source": vae, "subfolder": "vae"}},
    }  # fmt: skip
    first, second = node("first"), node("second")
    built = hotshelf.load_pipeline(base, snapshot=True, client=client_of(first), cache=None, **order)
    await_published(first)
    cache = PipelineCache()
    pipe = hotshelf.load_pipeline(base, client=client_of(second), cache=cache, **order)
    how, was = hotshelf.explain(pipe), hotshelf.explain(built)
    assert how["served_from"] == "snapshot"
    assert (how["pipeline_key"], how["revision"], how["components"]) == (
        was["pipeline_key"],
        was["revision"],
        was["components"],
    )
    assert draw(pipe) == draw(built)
    sources = " ".join(str(row["sources"]) for row in rows(second, "SELECT sources FROM v_snapshots"))
    assert "pipeline:" in sources
    fetched = value(second, "SELECT sum(size) FROM v_blobs")
    result = sum(entry.size for entry in client_of(second).acquire(f"pipeline:{how['snapshot']['key']}").files.values())
    lora = 0 if mode == "fuse" else library.lora("sd", "kohya", seed=5, components=("unet", "text_encoder")).stat().st_size
    assert fetched <= result + lora + 10_000, "no weights of the base came"
    again = hotshelf.load_pipeline(base, client=client_of(second), cache=cache, **order)
    assert hotshelf.explain(again)["served_from"] == "memory"
    assert draw(again) == draw(built)


def test_what_cannot_be_loaded_is_fetched_and_built_after_all(
    library: Library, node: Node, place: Callable[[str, pathlib.Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hotshelf.pipelines import loading

    base = place("sd", library.sd)
    first, second = node("first"), node("second")
    built = hotshelf.load_pipeline(base, dtype="bfloat16", snapshot=True, client=client_of(first), cache=None)
    await_published(first)
    real = loading.load

    def picky(order: Any, files: Any, *args: Any, **options: Any) -> Any:
        if files.snapshot is not None:
            raise loading.UnusableSnapshot("saved by a newer diffusers")
        return real(order, files, *args, **options)

    monkeypatch.setattr(loading, "load", picky)
    pipe = hotshelf.load_pipeline(base, dtype="bfloat16", client=client_of(second), cache=PipelineCache())
    assert hotshelf.explain(pipe)["served_from"] == "built"
    assert draw(pipe) == draw(built)


def test_without_anything_published_all_is_built_here(
    library: Library, node: Node, place: Callable[[str, pathlib.Path], str]
) -> None:
    base, daemon = place("sd", library.sd), node("first")
    pipe = hotshelf.load_pipeline(base, dtype="bfloat16", client=client_of(daemon), cache=PipelineCache())
    assert hotshelf.explain(pipe)["served_from"] == "built"
