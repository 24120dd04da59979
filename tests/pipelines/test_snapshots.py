"""A pipeline that was dear to build is built once: the next worker, here or on another store, loads what was kept."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import hotshelf
from hotshelf import PipelineCache
from hotshelf.errors import InsufficientSpace, InvalidRequest
from tests.daemon.looking import rows, value
from tests.daemon_process import Daemon
from tests.pipelines import tiny
from tests.pipelines.conftest import Library, Loras, client_of, draw, source, wanted
from tests.pipelines.together import at_once
from tests.waiting import wait_until

pytestmark = pytest.mark.torch
ROOT = pathlib.Path(__file__).parents[2]
#: Of each shape, the component that its LoRAs are for.
SHAPES = {"sd": "unet", "sdxl": "unet", "sd3": "transformer", "flux": "transformer"}


def two_loras(library: Library, shape: str) -> Loras:
    part = (SHAPES[shape],)
    return [(library.lora(shape, "diffusers", seed=1, components=part), 0.7),
            (library.lora(shape, "diffusers", seed=2, components=part), -0.4)]  # fmt: skip


def plainly_fused(library: Library, base: pathlib.Path, loras: Loras, **options: Any) -> Any:
    pipe = library.plain(base, loras, **options)
    with tiny.quiet():
        pipe.fuse_lora(components=[name for name in ("unet", "transformer") if hasattr(pipe, name)])
        pipe.unload_lora_weights()
    return pipe


def weights(pipe: Any) -> dict[str, Any]:
    import torch

    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    return {re.sub(r"\.(?:plain|lora_)(\d)\.", r".\1.", key): value for key, value in state.items()}


def assert_equal_weights(ours: Any, plain: Any) -> None:
    import torch

    mine, theirs = weights(ours), weights(plain)
    assert mine.keys() == theirs.keys()
    wrong = [key for key in theirs if mine[key].dtype != theirs[key].dtype or not torch.equal(mine[key], theirs[key])]
    assert wrong == []


def served(pipe: Any) -> str:
    return str(hotshelf.explain(pipe)["served_from"])


@pytest.mark.parametrize("shape", SHAPES)
def test_fused_it_is_the_same_built_in_memory_and_from_the_snapshot(library: Library, own_shelf: Daemon, shape: str) -> None:
    base, loras, client = library.base(shape), two_loras(library, shape), client_of(own_shelf)
    plain = plainly_fused(library, base, loras)
    expected = draw(plain)
    cache = PipelineCache()
    for cached, came_from in ((cache, "built"), (cache, "memory"), (PipelineCache(), "snapshot"), (None, "snapshot")):
        pipe = hotshelf.load_pipeline(
            source(base), loras=wanted(loras), lora_mode="fuse", snapshot=True, client=client, cache=cached
        )
        assert served(pipe) == came_from
        assert_equal_weights(pipe, plain)
        assert draw(pipe) == expected != library.plain_image(base)
    assert draw(hotshelf.load_pipeline(source(base), client=client, cache=cache)) == library.plain_image(base)


@pytest.mark.parametrize("shape", SHAPES)
def test_adapters_go_onto_a_cast_base_that_was_kept(library: Library, own_shelf: Daemon, shape: str) -> None:
    import torch

    base, loras, client = library.base(shape), two_loras(library, shape), client_of(own_shelf)
    for chosen, came_from in ((loras, "built"), (loras[:1], "snapshot"), (loras[::-1], "snapshot"), ([], "snapshot")):
        pipe = hotshelf.load_pipeline(
            source(base), loras=wanted(chosen), dtype="bfloat16", snapshot=True, client=client, cache=PipelineCache()
        )
        assert served(pipe) == came_from
        plain = library.plain(base, chosen, torch_dtype=torch.bfloat16)
        assert_equal_weights(pipe, plain)
        assert draw(pipe) == draw(plain)


def test_threads_that_want_different_things_of_one_base_get_them(library: Library, own_shelf: Daemon) -> None:
    base, (one, two), client, cache = library.sd, two_loras(library, "sd"), client_of(own_shelf), PipelineCache()
    jobs: list[tuple[str, Loras]] = [("adapters", [one]), ("fuse", [one]), ("fuse", [one, two]), ("adapters", [two, one])] * 2

    def work(mode: str, loras: Loras) -> bytes:
        return draw(hotshelf.load_pipeline(source(base), loras=wanted(loras), lora_mode=mode, client=client, cache=cache))

    for (mode, loras), image in zip(jobs, at_once([partial(work, *job) for job in jobs]), strict=True):
        plain = draw(plainly_fused(library, base, loras)) if mode == "fuse" else library.plain_image(base, loras)
        assert image == plain, (mode, loras)
    assert draw(hotshelf.load_pipeline(source(base), client=client, cache=cache)) == library.plain_image(base)


def test_only_what_building_changed_is_new_on_the_shelf(library: Library, own_shelf: Daemon) -> None:
    loras, client = two_loras(library, "sd"), client_of(own_shelf)
    hotshelf.load_pipeline(source(library.sd), loras=wanted(loras), client=client, cache=None)
    before = blobs(own_shelf)
    pipe = hotshelf.load_pipeline(
        source(library.sd), loras=wanted(loras), lora_mode="fuse", snapshot=True, client=client, cache=None
    )
    with client.acquire(f"pipeline:{hotshelf.explain(pipe)['snapshot']['key']}") as lease:
        files = {path: entry.digest for path, entry in lease.files.items()}
    new = {path for path, digest in files.items() if digest in blobs(own_shelf) - before}
    assert new <= {"model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
    assert "unet/diffusion_pytorch_model.safetensors" in new
    assert {path.split("/")[0] for path in files} == {
        "model_index.json", "unet", "vae", "text_encoder", "tokenizer", "scheduler",
    }  # fmt: skip


def blobs(daemon: Daemon) -> set[str]:
    return {row["digest"] for row in rows(daemon, "SELECT digest FROM v_blobs")}


def test_the_same_recipe_on_two_stores_has_the_same_key_and_the_same_bytes(
    library: Library, make_daemon: Callable[..., Daemon]
) -> None:
    loras, found = two_loras(library, "sd"), []
    for name in ("here", "there"):
        client = client_of(make_daemon(name, roots=[str(library.root)]))
        pipe = hotshelf.load_pipeline(
            source(library.sd), loras=wanted(loras), lora_mode="fuse", dtype="float16", snapshot=True, client=client, cache=None
        )
        how = hotshelf.explain(pipe)
        assert how["snapshot"]["key"] == how["pipeline_key"]
        with client.acquire(f"pipeline:{how['pipeline_key']}") as lease:
            found.append((how["pipeline_key"], lease.revision, sorted(lease.files.items())))
    assert found[0] == found[1]


def test_adapters_are_kept_with_their_files_under_the_key_of_the_whole(library: Library, own_shelf: Daemon) -> None:
    loras, client = two_loras(library, "sd"), client_of(own_shelf)
    pipe = hotshelf.load_pipeline(source(library.sd), loras=wanted(loras), snapshot=True, client=client, cache=None)
    with client.acquire(f"pipeline:{hotshelf.explain(pipe)['pipeline_key']}") as lease:
        for number, (path, _) in enumerate(loras):
            assert (lease.path / "loras" / f"{number}.safetensors").read_bytes() == path.read_bytes()
        assert draw(library.plain(lease.path)) == library.plain_image(library.sd)


WORKER = """
import json, sys
import hotshelf
order = json.loads(sys.argv[1])
pipe = hotshelf.load_pipeline(order.pop("source"), **order)
how = hotshelf.explain(pipe)
print(json.dumps([how["served_from"], how["snapshot"]["state"], how["phases"]]))
"""


def in_a_worker(daemon: Daemon, **order: Any) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", WORKER, json.dumps(order)], env={**daemon.environment, "OMP_NUM_THREADS": "1"}, cwd=ROOT,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_what_was_dear_is_kept_unasked_also_when_the_worker_ends_at_once(library: Library, own_shelf: Daemon) -> None:
    loras = [{"path": lora["path"], "scale": lora["scale"]} for lora in wanted(two_loras(library, "sd"))]
    fused = {"source": source(library.sd), "loras": loras, "lora_mode": "fuse", "dtype": "float16"}
    assert in_a_worker(own_shelf, **fused)[:2] == ["built", "saving"]
    assert in_a_worker(own_shelf, **fused)[:2] == ["snapshot", "loaded"]
    assert in_a_worker(own_shelf, **fused, snapshot=False)[:2] == ["built", "none"]


@pytest.mark.parametrize("order", [{}, {"dtype": "float32"}, {"loras": "two"}])
def test_what_costs_no_more_than_loading_is_not_kept(
    library: Library, own_shelf: Daemon, order: dict[str, Any], cache: PipelineCache
) -> None:
    loras = wanted(two_loras(library, "sd")) if "loras" in order else []
    pipe = hotshelf.load_pipeline(source(library.sd), **{**order, "loras": loras}, client=client_of(own_shelf), cache=cache)
    assert hotshelf.explain(pipe)["snapshot"] == {"state": "none"}
    assert value(own_shelf, "SELECT count(*) FROM v_pipelines") == 0


def test_what_the_caller_does_with_the_pipeline_does_not_reach_what_is_saved(library: Library, own_shelf: Daemon) -> None:
    client, loras = client_of(own_shelf), two_loras(library, "sd")
    order: dict[str, Any] = {"loras": wanted(loras), "lora_mode": "fuse", "client": client}
    pipe = hotshelf.load_pipeline(source(library.sd), cache=None, **order)
    with tiny.quiet():
        style = library.lora("sd", "diffusers", seed=9)
        pipe.load_lora_weights(str(style.parent), weight_name=style.name)
        pipe.fuse_lora()
    pipe.unet.load_state_dict({key: value * 0 for key, value in pipe.unet.state_dict().items()})
    wait_until(lambda: hotshelf.explain(pipe)["snapshot"]["state"] == "saved", what="the pipeline to be saved")
    again = hotshelf.load_pipeline(source(library.sd), cache=None, **order)
    assert served(again) == "snapshot"
    assert draw(again) == draw(plainly_fused(library, library.sd, loras))


# ---- bad input


def test_a_snapshot_that_cannot_be_loaded_here_is_built_anew(
    library: Library, own_shelf: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be of a diffusers newer than this worker's."""
    from diffusers import DiffusionPipeline

    client, loras, load = client_of(own_shelf), two_loras(library, "sd"), DiffusionPipeline.from_pretrained
    order: dict[str, Any] = {"loras": wanted(loras), "lora_mode": "fuse", "client": client, "cache": None}
    kept = hotshelf.load_pipeline(source(library.sd), snapshot=True, **order)
    with client.acquire(f"pipeline:{hotshelf.explain(kept)['pipeline_key']}") as lease:
        revision = lease.path.name

    def older(cls: Any, path: str, **options: Any) -> Any:
        if revision in path:
            raise ValueError("what is this?")
        return load.__func__(cls, path, **options)  # type: ignore[attr-defined]

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(older))
    for cache in (None, PipelineCache()):
        pipe = hotshelf.load_pipeline(source(library.sd), **{**order, "cache": cache})
        assert served(pipe) == "built"
        assert_equal_weights(pipe, kept)


def test_a_base_of_this_machine_is_never_handed_to_the_daemon(library: Library, own_shelf: Daemon) -> None:
    client, loras = client_of(own_shelf), wanted(two_loras(library, "sd"))
    with pytest.raises(InvalidRequest, match="lie on the shelf") as refused:
        hotshelf.load_pipeline(str(library.sd), loras=loras, lora_mode="fuse", snapshot=True, client=client, cache=None)
    assert refused.value.hint
    pipe = hotshelf.load_pipeline(str(library.sd), loras=loras, lora_mode="fuse", client=client, cache=None)
    assert hotshelf.explain(pipe)["snapshot"] == {"state": "none"}


def test_a_lora_of_this_machine_is_not_kept_unasked(library: Library, own_shelf: Daemon) -> None:
    here = [{"path": str(path), "scale": scale} for path, scale in two_loras(library, "sd")]
    pipe = hotshelf.load_pipeline(source(library.sd), loras=here, lora_mode="fuse", client=client_of(own_shelf), cache=None)
    assert hotshelf.explain(pipe)["snapshot"] == {"state": "none"}


@pytest.fixture
def tiny_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.root
def test_a_full_disk_while_saving_is_said_and_leaves_nothing(
    library: Library, own_shelf: Daemon, tiny_disk: pathlib.Path, monkeypatch: pytest.MonkeyPatch, cache: PipelineCache
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tiny_disk))
    client, loras = client_of(own_shelf), two_loras(library, "sd")
    order: dict[str, Any] = {"loras": wanted(loras), "lora_mode": "fuse", "client": client, "cache": cache}
    with pytest.raises(InsufficientSpace, match="saving the pipeline"):
        hotshelf.load_pipeline(source(library.sd), snapshot=True, **order)
    assert list(tiny_disk.iterdir()) == []
    assert value(own_shelf, "SELECT count(*) FROM v_pipelines") == 0
    cache.clear()
    pipe = hotshelf.load_pipeline(source(library.sd), **order)
    wait_until(lambda: hotshelf.explain(pipe)["snapshot"]["state"] == "failed", what="the saving to fail")
    assert draw(pipe) == draw(plainly_fused(library, library.sd, loras))


def test_a_shelf_without_room_for_it_refuses_it_and_the_pipeline_draws_all_the_same(
    library: Library, make_daemon: Callable[..., Daemon]
) -> None:
    size = sum(path.stat().st_size for path in library.sd.rglob("*") if path.is_file())
    daemon = make_daemon(roots=[str(library.root)], budget=size + 120_000)
    client, loras = client_of(daemon), two_loras(library, "sd")
    pipe = hotshelf.load_pipeline(source(library.sd), loras=wanted(loras), lora_mode="fuse", client=client, cache=None)
    wait_until(lambda: hotshelf.explain(pipe)["snapshot"]["state"] == "failed", what="the daemon to refuse it")
    assert "bytes" in hotshelf.explain(pipe)["snapshot"]["why"]
    assert draw(pipe) == draw(plainly_fused(library, library.sd, loras))
    assert client.snapshots()


def test_a_daemon_that_dies_while_it_is_saved_costs_nothing_but_the_saving(library: Library, own_shelf: Daemon) -> None:
    client, loras = client_of(own_shelf), two_loras(library, "sd")
    put, died = client.put_blob, threading.Event()

    def put_to_the_dying(*args: Any, **options: Any) -> bool:
        if not died.is_set():
            died.set()
            own_shelf.kill9()
        return put(*args, **options)

    client.put_blob = put_to_the_dying  # type: ignore[method-assign]
    pipe = hotshelf.load_pipeline(source(library.sd), loras=wanted(loras), lora_mode="fuse", client=client, cache=None)
    wait_until(lambda: hotshelf.explain(pipe)["snapshot"]["state"] == "failed", timeout_s=60, what="the saving to fail")
    assert draw(pipe) == draw(plainly_fused(library, library.sd, loras))
    own_shelf.restart()
    assert value(own_shelf, "SELECT count(*) FROM v_pipelines") == 0


def test_what_was_built_is_a_source_by_its_key(library: Library, own_shelf: Daemon) -> None:
    client, loras = client_of(own_shelf), two_loras(library, "sd")
    built = hotshelf.load_pipeline(
        source(library.sd), loras=wanted(loras), lora_mode="fuse", snapshot=True, client=client, cache=None
    )
    pipe = hotshelf.load_pipeline(f"pipeline:{hotshelf.explain(built)['pipeline_key']}", client=client, cache=None)
    assert draw(pipe) == draw(plainly_fused(library, library.sd, loras))
