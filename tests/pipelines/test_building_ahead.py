"""`hotshelf build`: a recipe in a file becomes a pipeline on the shelf, which the first worker loads."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

import hotshelf
from tests.daemon_process import Daemon
from tests.pipelines.conftest import Library, client_of, draw, source
from tests.servers.child import clean_environment

pytestmark = pytest.mark.torch


def build(daemon: Daemon, recipe: pathlib.Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hotshelf", "build", str(recipe), *options],
        env={**clean_environment(), **daemon.environment}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def written(folder: pathlib.Path, body: Any) -> pathlib.Path:
    path = folder / "recipe.yaml"
    path.write_text(body if isinstance(body, str) else json.dumps(body))  # JSON is YAML
    return path


def test_what_was_built_ahead_is_what_the_first_worker_loads(
    library: Library, own_shelf: Daemon, tmp_path: pathlib.Path
) -> None:
    loras = [{"path": source(library.lora("sd", "kohya", seed=5)), "scale": 0.7}]
    fused = {"source": source(library.sd), "loras": loras, "lora_mode": "fuse", "dtype": "bfloat16"}
    recipe = written(tmp_path, {"pipelines": [fused, {"source": source(library.sd), "loras": loras}]})
    done = build(own_shelf, recipe, "--pin", "--format", "json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["pipelines"]
    assert [one["built"] for one in report] == [True, True]
    client = client_of(own_shelf)
    pipe = hotshelf.load_pipeline(**fused, client=client, cache=None)
    assert hotshelf.explain(pipe)["served_from"] == "snapshot"
    assert hotshelf.explain(pipe)["pipeline_key"] == report[0]["key"]
    assert draw(pipe)
    assert {pin["target"] for pin in own_shelf.call("GET", "/v1/pins").body["pins"]} == {
        f"pipeline:{one['key']}" for one in report
    }
    again = build(own_shelf, recipe, "--format", "quiet")
    assert again.stdout.split() == [one["key"] for one in report]


def test_a_dry_run_builds_nothing(library: Library, own_shelf: Daemon, tmp_path: pathlib.Path) -> None:
    done = build(own_shelf, written(tmp_path, f"source: {source(library.sd)}\ndtype: float16\n"), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would build" in done.stderr
    assert own_shelf.call("GET", "/v1/snapshots").body["snapshots"] == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("source: [", "is not YAML"),
        ("- 1", "holds no recipe"),
        ("pipelines: []", "holds no recipe"),
        ("dtype: float16", "names no source"),
        ("source: s3://b/m\ndtpye: float16", "unknown field 'dtpye'"),
        ("source: s3://b/m\ncompile: {mode: aot, shapes: [{hight: 512}]}", "unknown field 'hight'"),
        ("source: s3://b/m\ncompile: fast", "compile 'fast'"),
        ("source: s3://b/m\ncompile: {mode: aot, shapes: []}", "compile's shapes"),
        ("source: s3://b/m\ncompile: {mode: aot, shapes: [{batch: 0}]}", "a shape's batch is 0"),
        ("source: s3://b/m\nlora_mode: melt", "lora_mode 'melt'"),
        ("source: s3://b/m\nloras: [{path: s3://b/l, scale: .nan}]", "no finite number"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(own_shelf: Daemon, tmp_path: pathlib.Path, text: str, says: str) -> None:
    done = build(own_shelf, written(tmp_path, text))
    assert done.returncode == 2
    assert says in done.stderr
