"""Compiled by one process, run at once by the next: the same images, and what does not fit is drawn plainly and says so."""

from __future__ import annotations

import copy
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import pytest

import hotshelf
from hotshelf import PipelineCache, compiling
from hotshelf.pipelines.compilation import applying, forward, package, workshop
from hotshelf_shared.bundle import BundleName
from tests.daemon_process import Daemon
from tests.pipelines import tiny
from tests.pipelines.conftest import Library, client_of, draw, source
from tests.servers.child import clean_environment

pytestmark = pytest.mark.torch
#: Of a float32 pixel in 0 to 1.
CLOSE = 1e-4
WORKER = """
import json, sys, hotshelf
from tests.pipelines.conftest import draw
import torch
torch.set_num_threads(1)
pipe = hotshelf.load_pipeline(sys.argv[1], compile=sys.argv[2])
image = draw(pipe)
from hotshelf.pipelines.background import background
background.finish(120)
print(json.dumps({"how": hotshelf.explain(pipe)["compile"], "image": image.hex()}))
"""


def apart(one: bytes, other: bytes) -> float:
    first, second = (numpy.frombuffer(image, dtype=numpy.float32) for image in (one, other))
    return float(numpy.abs(first - second).max())


def environment(daemon: Daemon, inductor: pathlib.Path) -> Mapping[str, str]:
    return {**clean_environment(), **daemon.environment, "TORCHINDUCTOR_CACHE_DIR": str(inductor)}


def a_worker(
    daemon: Daemon, base: pathlib.Path, mode: str, inductor: pathlib.Path, **more: str
) -> tuple[dict[str, Any], bytes]:
    """A fresh process that draws once: what `explain` says of its compiling, and the image."""
    done = subprocess.run(
        [sys.executable, "-c", WORKER, source(base), mode],
        env={**environment(daemon, inductor), **more}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    return said["how"], bytes.fromhex(said["image"])


@pytest.fixture(scope="module")
def base(library: Library) -> pathlib.Path:
    return library.base("sd-least")


@pytest.fixture(scope="module")
def built(library: Library, base: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A shelf with a package for one size, built ahead."""
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "recipe.yaml").write_text(
        json.dumps({"source": source(base), "compile": {"mode": "aot", "shapes": [{"height": 16, "width": 16}]}})
    )
    with Daemon(folder / "shelf", roots=[str(library.root)], revalidate_s=3600) as daemon:
        done = subprocess.run(
            [sys.executable, "-m", "hotshelf", "build", str(folder / "recipe.yaml"), "--format", "json"],
            env=dict(environment(daemon, folder / "inductor")), capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (report,) = json.loads(done.stdout)["pipelines"]
        assert report["compile"]["kept"] == "saved"
        assert report["compile"]["misses"] == 1
        yield daemon


class Bench(workshop.Workshop):
    """A workshop that makes nothing: what it was asked to make is at `asked`."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[BundleName] = []

    def make(self, client: hotshelf.Client, wish: workshop.Wish, *, keep: bool) -> None:
        self.asked.append(wish.name)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench()
    monkeypatch.setattr(applying, "workshop", bench)
    yield bench
    bench.close()


@pytest.fixture
def aot(built: Daemon, base: pathlib.Path, bench: Bench, cache: PipelineCache) -> Any:
    def load(where: pathlib.Path = base, **options: Any) -> Any:
        options = {"compile": "aot", "cache": cache, "client": client_of(built), "timeout": 60, **options}
        return hotshelf.load_pipeline(source(where), **options)

    return load


def how(pipe: Any) -> dict[str, Any]:
    found: dict[str, Any] = hotshelf.explain(pipe)["compile"]
    return found


# ---- a package that was built ahead


def test_a_package_that_was_built_ahead_draws_what_plain_diffusers_draws(
    aot: Any, library: Library, base: pathlib.Path
) -> None:
    pipe = aot()
    assert apart(draw(pipe), library.plain_image(base)) < CLOSE
    said = how(pipe)
    assert (said["mode"], said["runs"], said["served_from"]) == ("aot", "aot", "bundle")
    assert (said["hits"], said["misses"], said["why"]) == (1, 0, None)
    assert said["calls"]["eager"] == 0
    assert said["calls"]["compiled"] > 0


def test_one_package_is_for_all_weights_of_a_kind_and_for_those_that_loras_were_fused_into(
    aot: Any, library: Library, base: pathlib.Path, bench: Bench
) -> None:
    other = library.base("sd-least", seed=1)
    lora = library.lora("sd-least", "kohya", seed=5)
    fused = aot(loras=[{"path": source(lora), "scale": 0.7}], lora_mode="fuse")
    pipe = aot(other)
    assert apart(draw(pipe), library.plain_image(other)) < CLOSE
    assert apart(draw(fused), library.plain_image(base, [(lora, 0.7)])) < CLOSE
    assert apart(draw(fused), library.plain_image(base)) > CLOSE
    assert how(pipe)["calls"]["eager"] == how(fused)["calls"]["eager"] == 0
    assert bench.asked == []


def test_compiling_one_pipeline_leaves_the_weights_in_memory_and_their_other_pipelines_as_they_are(
    aot: Any, library: Library, base: pathlib.Path
) -> None:
    before = aot(compile=False)
    compiled = aot()
    draw(compiled)
    assert draw(before) == draw(aot(compile=False)) == library.plain_image(base)
    assert how(before)["calls"] == {"compiled": 0, "eager": 0}


def test_a_changed_weight_is_drawn_with(aot: Any, library: Library, base: pathlib.Path) -> None:
    import torch

    pipe, plain = aot(), library.plain(base)
    draw(pipe)
    for one in (pipe, plain):
        with torch.no_grad():
            one.unet.conv_in.weight.data = one.unet.conv_in.weight.data * 1.5
            one.unet.conv_out.bias.add_(0.25)
    assert apart(draw(pipe), draw(plain)) < CLOSE
    assert apart(draw(pipe), library.plain_image(base)) > CLOSE
    assert how(pipe)["calls"]["eager"] == 0


def test_another_size_is_drawn_plainly_and_its_package_is_wanted(
    aot: Any, library: Library, base: pathlib.Path, bench: Bench
) -> None:
    import torch

    def drawn(pipe: Any, **more: Any) -> Any:
        pipe.set_progress_bar_config(disable=True)
        return pipe(
            "a red cat", generator=torch.Generator().manual_seed(7), output_type="np", num_inference_steps=2, **more
        ).images

    pipe, plain = aot(), library.plain(base)
    for more in ({"height": 32, "width": 16}, {"height": 16, "width": 16, "guidance_scale": 1.0}):
        assert (drawn(pipe, **more) == drawn(plain, **more)).all()
    said = how(pipe)
    assert (said["hits"], said["misses"], said["calls"]["compiled"]) == (0, 2, 0)
    assert "there is none yet for" in said["why"]
    assert len(set(bench.asked)) == 2


def test_another_dtype_is_drawn_plainly(aot: Any, library: Library, base: pathlib.Path) -> None:
    import torch

    pipe, plain = aot(), library.plain(base)
    draw(pipe)
    compiled = how(pipe)["calls"]["compiled"]
    assert draw(pipe.to(torch.bfloat16)) == draw(plain.to(torch.bfloat16))
    assert how(pipe)["calls"]["compiled"] == compiled
    assert how(pipe)["calls"]["eager"] > 0


def test_another_memory_layout_is_drawn_plainly(aot: Any, library: Library, base: pathlib.Path) -> None:
    """Native code looks at no stride."""
    import torch

    pipe, plain = aot(), library.plain(base)
    for one in (pipe, plain):
        one.unet.to(memory_format=torch.channels_last)
    assert draw(pipe) == draw(plain)
    assert how(pipe)["calls"]["compiled"] == 0
    assert "changed after it was loaded" in how(pipe)["why"]


def test_code_that_fails_when_it_runs_is_drawn_plainly(
    aot: Any, library: Library, base: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(package.Package, "run", run)
    pipe = aot()
    assert draw(pipe) == library.plain_image(base)
    assert "no kernel image is available" in how(pipe)["why"]
    assert how(pipe)["calls"]["compiled"] == 0


def test_adapters_are_drawn_plainly_whenever_they_come(aot: Any, library: Library, base: pathlib.Path) -> None:
    lora = library.lora("sd-least", "kohya", seed=5)
    wanted = library.plain_image(base, [(lora, 0.7)])
    early = aot(loras=[{"path": source(lora), "scale": 0.7}])
    assert draw(early) == wanted
    assert how(early)["runs"] == "eager"
    assert "adapters lie on the unet" in how(early)["why"]
    late = aot()
    draw(late)
    with tiny.quiet():
        late.load_lora_weights(str(lora.parent), weight_name=lora.name, adapter_name="late")
    late.set_adapters(["late"], [0.7])
    assert draw(late) == wanted
    assert "changed after it was loaded" in how(late)["why"]
    plainly = how(late)["calls"]["eager"]
    late.unload_lora_weights()
    assert apart(draw(late), library.plain_image(base)) < CLOSE
    assert how(late)["calls"]["eager"] == plainly, "the package fits again"


def test_a_copy_of_a_compiled_denoiser_is_a_plain_one(aot: Any, library: Library, base: pathlib.Path) -> None:
    pipe = aot()
    draw(pipe)
    twin = copy.deepcopy(pipe.unet)
    pipe.unet.conv_in.weight.data.zero_()
    pipe.unet = twin
    assert draw(pipe) == library.plain_image(base)


def test_gradients_are_had_of_a_pipeline_that_draws_with_a_package(aot: Any) -> None:
    import torch

    unet = aot().unet
    sample = torch.zeros(2, 4, 8, 8, requires_grad=True)
    out = unet(sample, torch.tensor(5), torch.zeros(2, 77, 32), return_dict=False)[0]
    out.sum().backward()
    assert sample.grad is not None


# ---- a package that is not to be trusted


def names(daemon: Daemon) -> list[BundleName]:
    return [
        BundleName.parse(str(path.relative_to(daemon.store / "bundles"))) for path in (daemon.store / "bundles").glob("*/*")
    ]


def test_a_package_of_another_environment_is_never_asked_for(
    aot: Any, library: Library, base: pathlib.Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "environment_key", lambda: "elsewhere")
    pipe = aot()
    assert draw(pipe) == library.plain_image(base)
    assert how(pipe)["served_from"] == "none"
    assert {name.environment_key for name in bench.asked} == {"elsewhere"}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "package.json").write_text('{"class": "Other"}'), "is not what its name says"),
        (lambda folder: (folder / "package.json").write_text("["), "is not what its name says"),
        (lambda folder: (folder / "denoiser.pt2").write_bytes(b"nothing"), "cannot be loaded"),
        (lambda folder: (folder / "denoiser.pt2").unlink(), "cannot be loaded"),
    ],
)
def test_a_bundle_that_is_no_package_for_this_is_not_run(
    aot: Any, built: Daemon, library: Library, base: pathlib.Path, bench: Bench, tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, spoil: Any, says: str,
) -> None:  # fmt: skip
    (good, *_) = [name for name in names(built) if not name.environment_key.startswith("spoiled")]
    client, folder = client_of(built), tmp_path / "package"
    assert compiling.fetch(client, good, folder, timeout=30) is not None
    spoil(folder)
    spoiled = BundleName.of(f"spoiled-{abs(hash(request.node.name))}", good.graph_key)
    compiling.keep(client, spoiled, folder, timeout=60)
    monkeypatch.setattr(compiling, "environment_key", lambda: spoiled.environment_key)
    pipe = aot()
    assert draw(pipe) == library.plain_image(base)
    assert how(pipe)["calls"]["compiled"] == 0
    assert says in how(pipe)["why"]
    assert bench.asked, "a good one is made in its place"


def test_a_tampered_bundle_is_not_run(
    aot: Any, built: Daemon, library: Library, base: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (good, *_) = [name for name in names(built) if not name.environment_key.startswith("spoiled")]
    client, folder = client_of(built), tmp_path / "package"
    assert compiling.fetch(client, good, folder, timeout=30) is not None
    (folder / "more").write_text("another archive, so that the good one keeps its bytes")
    mine = BundleName.of("spoiled-bytes", good.graph_key)
    compiling.keep(client, mine, folder, timeout=60)
    (archive,) = (built.store / "bundles" / str(mine)).glob("*/archive")
    blob = archive.resolve()
    os.chmod(blob, 0o640)
    with blob.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"tampered")
    monkeypatch.setattr(compiling, "environment_key", lambda: mine.environment_key)
    pipe = aot()
    assert draw(pipe) == library.plain_image(base)
    assert how(pipe)["calls"]["compiled"] == 0


def test_without_a_daemon_it_is_drawn_plainly_and_says_why(
    library: Library, base: pathlib.Path, bench: Bench, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workshop, "LOOK_S", 0.5)
    client = hotshelf.Client(tmp_path / "nobody", tmp_path)
    pipe = hotshelf.load_pipeline(str(base), compile="aot", client=client, cache=None)
    assert draw(pipe) == library.plain_image(base)
    assert how(pipe)["calls"]["compiled"] == 0
    assert bench.asked


def test_a_worker_that_is_called_in_ever_new_ways_wants_no_more_packages(
    aot: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "MOST_KINDS", 1)
    pipe = aot()
    draw(pipe)
    pipe("a red cat", num_inference_steps=1, height=32, width=32)
    assert bench.asked == []
    assert "in more than 1 ways" in how(pipe)["why"]


def test_what_cannot_be_made_says_why_and_is_tried_once(shelf: Daemon) -> None:
    shop = workshop.Workshop()
    wish = workshop.Wish(
        BundleName.of("nowhere", "g"), {}, {"class": "NoSuchModel", "config": {}, "tensors": {}, "structure": []}
    )
    client = client_of(shelf)
    assert shop.find(client, wish).state is workshop.State.ABSENT
    shop.make(client, wish, keep=True)
    assert shop.finish(300)
    item = shop.find(client, wish)
    assert item.state is workshop.State.FAILED
    assert "NoSuchModel" in str(item.why)
    shop.make(client, wish, keep=True)
    assert shop.finish(1)
    shop.close()


def test_whoever_asked_and_is_gone_leaves_no_compiler_and_no_folder_behind(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "hotshelf.pipelines.compilation.making"], stdin=subprocess.PIPE, start_new_session=True
    ) as child:
        assert child.stdin is not None
        child.stdin.write(json.dumps({"folder": str(folder)}).encode() + b"\n")
        child.stdin.close()
        assert child.wait(60) == -signal.SIGKILL
    assert not folder.exists()


def test_a_process_makes_so_many_packages_and_no_more(shelf: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshop, "MOST_MADE", 0)
    shop, client = workshop.Workshop(), client_of(shelf)
    wish = workshop.Wish(BundleName.of("nowhere", "other"), {}, {})
    item = shop.find(client, wish)
    shop.make(client, wish, keep=True)
    assert item.state is workshop.State.ABSENT
    assert "hotshelf build" in str(item.why)


# ---- compiled at the first call


def test_the_second_worker_compiles_nothing_that_the_first_compiled(
    library: Library, built: Daemon, base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    first, drawn = a_worker(built, base, "regional", tmp_path / "one")
    assert (first["served_from"], first["hits"], first["kept"]) == ("none", 0, "saved")
    assert first["misses"] > 0
    second, again = a_worker(built, base, "regional", tmp_path / "two")
    assert (second["served_from"], second["misses"], second["kept"]) == ("bundle", 0, "none")
    assert second["hits"] == first["misses"]
    assert apart(drawn, library.plain_image(base)) < CLOSE
    assert again == drawn


def test_where_torch_cannot_compile_it_is_drawn_plainly(
    library: Library, shelf: Daemon, base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    said, drawn = a_worker(shelf, base, "regional", tmp_path / "cache", CXX="/nonexistent/c++")
    assert drawn == library.plain_image(base)
    assert said["calls"]["compiled"] == 0
    assert "torch cannot compile it here" in said["why"]
