"""What is in memory is served at once, with or without a daemon, is fresh, is bounded, and holds its leases."""

from __future__ import annotations

import gc
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest

import hotshelf
from hotshelf import PipelineCache
from hotshelf.errors import DaemonUnavailable, NotFound
from tests import objects
from tests.daemon_process import Daemon
from tests.pipelines.conftest import Library, Loras, client_of, draw, source, wanted
from tests.pipelines.together import at_once
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

pytestmark = pytest.mark.torch
FIELDS = {"source", "revision", "pipeline_key", "loras", "attention", "dtype", "device", "phases", "served_from"}


def served_from(pipe: Any) -> str:
    return str(hotshelf.explain(pipe)["served_from"])


def test_a_memory_hit_needs_no_daemon_and_does_not_wait_for_one(
    library: Library, own_shelf: Daemon, cache: PipelineCache
) -> None:
    loras: Loras = [(library.lora("sd", "kohya", seed=5), 0.7)]
    client = client_of(own_shelf)

    def load(device: str = "cpu") -> Any:
        return hotshelf.load_pipeline(
            source(library.sd), loras=wanted(loras), client=client, cache=cache, timeout=30, device=device
        )

    load()
    own_shelf.kill9()
    pipe = load()
    assert served_from(pipe) == "memory"
    assert hotshelf.explain(pipe)["phases"]["wait"] < 1.0
    assert draw(pipe) == library.plain_image(library.sd, loras)
    assert served_from(load(device="auto" if not _has_gpu() else "cpu")) == "memory"
    with pytest.raises(DaemonUnavailable):  # other LoRAs are no hit
        hotshelf.load_pipeline(source(library.sd), client=client, cache=cache, timeout=0.5)
    cache.clear()
    with pytest.raises(DaemonUnavailable):
        hotshelf.load_pipeline(source(library.sd), loras=wanted(loras), client=client, cache=cache, timeout=0.5)


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def test_a_daemon_that_hangs_does_not_keep_what_is_in_memory(library: Library, own_shelf: Daemon, cache: PipelineCache) -> None:
    client = client_of(own_shelf)
    hotshelf.load_pipeline(source(library.sd), client=client, cache=cache)
    with own_shelf.frozen():
        began = time.monotonic()
        assert served_from(hotshelf.load_pipeline(source(library.sd), client=client, cache=cache, timeout=300)) == "memory"
        assert time.monotonic() - began < 60


def test_a_daemon_that_says_no_is_believed(library: Library, own_shelf: Daemon, cache: PipelineCache) -> None:
    """In memory or not: what is gone at the source, or forbidden since, is not served behind the daemon's back."""
    folder = library.root / "withdrawn"
    shutil.copytree(library.sd, folder)
    client = client_of(own_shelf)
    pipe = hotshelf.load_pipeline(source(folder), client=client, cache=cache)
    revision = hotshelf.explain(pipe)["revision"]
    del pipe
    cache.clear()
    hotshelf.load_pipeline(str(folder), client=client, cache=cache)  # the weights are in memory, by another way
    gc.collect()
    shutil.rmtree(folder)
    for snapshot in client.snapshots():
        wait_until(lambda: _evicted(client, snapshot["revision"]), what="the leases to end")  # noqa: B023 - called at once
    assert revision not in {snapshot["revision"] for snapshot in client.snapshots()}
    with pytest.raises(NotFound):
        hotshelf.load_pipeline(source(folder), client=client, cache=cache, timeout=10)


def _evicted(client: hotshelf.Client, revision: str) -> bool:
    try:
        client.evict(revision)
    except hotshelf.errors.InUse:
        return False
    except NotFound:
        return True
    return True


def test_a_changed_origin_gives_the_new_weights(
    library: Library, seaweedfs: SeaweedFS, make_daemon: Callable[..., Daemon], recorder: Recorder, bucket: str, prefix: str,
    cache: PipelineCache,
) -> None:  # fmt: skip
    daemon = make_daemon(origins={"weed": seaweedfs.settings(bucket, endpoint_url=recorder.endpoint_url)}, revalidate_s=0.2)
    other = library.base("sd", seed=1)
    place, client = f"s3://{bucket}/{prefix}/sd", client_of(daemon)
    objects.put(seaweedfs, bucket, f"{prefix}/sd", objects.read(library.sd))
    old = hotshelf.load_pipeline(place, client=client, cache=cache)
    assert draw(old) == library.plain_image(library.sd)
    objects.put(seaweedfs, bucket, f"{prefix}/sd", objects.read(other))

    def newer() -> Any:
        pipe = hotshelf.load_pipeline(place, client=client, cache=cache)
        return pipe if hotshelf.explain(pipe)["revision"] != hotshelf.explain(old)["revision"] else None

    new = wait_until(newer, every_s=0.3, what="the new revision")
    assert draw(new) == library.plain_image(other) != draw(old)
    assert draw(old) == library.plain_image(library.sd)
    daemon.kill9()
    assert draw(hotshelf.load_pipeline(place, client=client, cache=cache)) == draw(new)


# ---- leases


def leases(daemon: Daemon) -> int:
    return int(daemon.call("GET", "/v1/status").body["leases"])


def gone(daemon: Daemon) -> bool:
    gc.collect()
    return leases(daemon) == 0


def test_leases_live_as_long_as_the_pipeline_or_its_cache_entry(
    library: Library, own_shelf: Daemon, cache: PipelineCache
) -> None:
    client = client_of(own_shelf)
    loras = wanted([(library.lora("sd", "kohya", seed=5), 0.7)])
    pipe = hotshelf.load_pipeline(source(library.sd), loras=loras, client=client, cache=cache)
    assert leases(own_shelf) == 2
    cache.clear()
    gc.collect()
    assert draw(pipe)
    assert leases(own_shelf) == 2, "the pipeline holds them"
    del pipe
    wait_until(lambda: gone(own_shelf), what="the leases to end with the pipeline")

    pipe = hotshelf.load_pipeline(source(library.sd), loras=loras, client=client, cache=cache)
    del pipe
    wait_until(lambda: gc.collect() is not None and leases(own_shelf) == 1, what="the LoRA's lease to end")
    assert leases(own_shelf) == 1, "the cache entry holds the base's"
    cache.clear()
    wait_until(lambda: gone(own_shelf), what="the lease to end with the cache entry")


def test_a_failed_load_holds_nothing(library: Library, own_shelf: Daemon) -> None:
    client, misfit = client_of(own_shelf), wanted([(library.lora("sd-wide", "kohya"), 1.0)])
    with pytest.raises(hotshelf.errors.InvalidRequest):
        hotshelf.load_pipeline(source(library.sd), loras=misfit, client=client, cache=None)
    wait_until(lambda: gone(own_shelf), what="the leases to end")


# ---- bounds


def test_no_more_pipelines_are_kept_than_asked_for(library: Library, load: Any) -> None:
    two = PipelineCache(max_pipelines=1)
    other = library.base("sd", seed=1)
    assert [served_from(load(base, cache=two)) for base in (library.sd, library.sd, other, library.sd)] == [
        "built", "memory", "built", "built",
    ]  # fmt: skip
    assert len(two) == 1


def test_no_more_bytes_are_kept_than_asked_for(library: Library, load: Any) -> None:
    other, everything = library.base("sd", seed=1), PipelineCache()
    for base in (library.sd, other):
        load(base, cache=everything)
    one = everything.bytes_held // 2
    weights = sum(path.stat().st_size for path in library.sd.rglob("*.safetensors"))
    assert 0.8 * weights < one <= weights
    bounded = PipelineCache(max_bytes=one + 1000)
    assert [served_from(load(base, cache=bounded)) for base in (library.sd, other, other, library.sd)] == [
        "built", "built", "memory", "built",
    ]  # fmt: skip
    assert bounded.bytes_held <= one + 1000
    none = PipelineCache(max_bytes=10)
    assert draw(load(library.sd, cache=none)) == library.plain_image(library.sd)
    assert (none.bytes_held, len(none)) == (0, 0)


def test_another_dtype_is_another_base_and_the_default_device_is_the_cpu(
    library: Library, load: Any, cache: PipelineCache
) -> None:
    assert served_from(load(library.sd)) == "built"
    assert served_from(load(library.sd, device="cpu")) == "memory"
    assert served_from(load(library.sd, dtype="float16")) != "memory"
    assert len(cache) == 2


def test_a_scheduler_that_differs_shares_every_weight(library: Library, load: Any) -> None:
    folder = library.root / "sd-other-scheduler"
    shutil.copytree(library.sd, folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("scaled_linear", "linear"))
    load(library.sd)
    pipe = load(folder)
    assert served_from(pipe) == "memory"
    assert draw(pipe) == library.plain_image(folder) != library.plain_image(library.sd)


def test_one_builds_while_others_wait(library: Library, load: Any) -> None:
    came_from = at_once([lambda: served_from(load(library.sd))] * 4)
    assert sorted(came_from) == ["built", "memory", "memory", "memory"]


def test_by_default_one_cache_serves_the_process(library: Library, client: hotshelf.Client) -> None:
    folder = library.base("sd", seed=2)
    assert [served_from(hotshelf.load_pipeline(source(folder), client=client)) for _ in range(2)] == ["built", "memory"]


def test_a_class_that_takes_a_few_of_the_components_lets_go_of_none(library: Library, load: Any) -> None:
    two = PipelineCache(max_pipelines=2)
    load(library.sd, cache=two, pipeline_class="DDPMPipeline")
    load(library.sd, cache=two)
    for seed in (1, 2):
        assert served_from(load(library.base("sd", seed=seed), cache=two)) == "built"
        assert served_from(load(library.sd, cache=two)) == "memory"


# ---- explain


def test_explain_says_how_it_was_made(library: Library, load: Any) -> None:
    style = library.lora("sd", "kohya", seed=5)
    pipe = load(library.sd, [(style, 0.7)])
    how = hotshelf.explain(pipe)
    assert set(how) >= FIELDS
    assert how["source"] == source(library.sd)
    digest = objects.manifest_of({"x": style.read_bytes()})["x"].digest
    assert how["loras"] == [{"path": source(style), "digest": digest, "scale": 0.7}]
    assert how["attention"]["backend"] == "native"
    assert how["attention"]["refused"]["flash"] == "needs a CUDA device, this is cpu"
    assert (how["dtype"], how["device"], how["served_from"]) == ("float32", "cpu", "built")
    assert {"acquire", "import", "wait", "load", "lora", "attention", "total"} <= set(how["phases"])
    how["loras"].clear()
    assert hotshelf.explain(pipe)["loras"], "what it answers is a copy"


def test_the_pipeline_key_is_that_of_the_recipe_wherever_it_is_made(
    library: Library, own_shelf: Daemon, load: Any, tmp_path: pathlib.Path
) -> None:
    one, two = (library.lora("sd", "kohya", seed=seed) for seed in (5, 6))

    def key(pipe: Any) -> str:
        return str(hotshelf.explain(pipe)["pipeline_key"])

    here = key(load(library.sd, [(one, 0.7), (two, 0.4)]))
    moved = tmp_path / "elsewhere"
    shutil.copytree(library.sd, moved / "sd")
    shutil.copy(one, moved / "renamed.safetensors")
    shutil.copy(two, moved / "two.safetensors")
    local = hotshelf.load_pipeline(
        str(moved / "sd"),
        loras=[
            {"path": str(moved / "renamed.safetensors"), "scale": 0.7},
            {"path": str(moved / "two.safetensors"), "scale": 0.4},
        ],
    )
    there = hotshelf.load_pipeline(source(library.sd), loras=wanted([(one, 0.7), (two, 0.4)]), client=client_of(own_shelf))
    assert key(local) == key(there) == here
    others = [
        load(library.sd, [(two, 0.4), (one, 0.7)]),
        load(library.sd, [(one, 0.7), (two, 0.5)]),
        load(library.sd, [(one, 0.7)]),
        load(library.base("sd", seed=1), [(one, 0.7), (two, 0.4)]),
        load(library.sd, [(one, 0.7), (two, 0.4)], dtype="float16"),
    ]
    assert len({here, *map(key, others)}) == 6
