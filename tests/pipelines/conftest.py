"""A shelf that all tests of this folder share, what is published on it, and plain diffusers to compare with."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import pytest

import hotshelf
from hotshelf import PipelineCache
from tests.daemon_process import Daemon
from tests.pipelines import tiny, tiny_loras

#: (path of a file, scale)
Loras = Sequence[tuple[pathlib.Path, float]]


class Library:
    """Pipelines and LoRAs below `root`, made when first asked for; the images that plain diffusers draws with them."""

    def __init__(self, root: pathlib.Path) -> None:
        import torch

        torch.set_num_threads(1)  # the tests' models are too small for more, and two cores are shared
        self.root = root
        self._drawn: dict[Any, bytes] = {}
        self._models: dict[str, Any] = {}

    def base(self, name: str, *, seed: int = 0) -> pathlib.Path:
        folder = self.root / f"{name}-{seed}"
        return folder if folder.exists() else tiny.save_to(name, folder, seed=seed)

    def model(self, name: str) -> Any:
        """For its shapes only."""
        if name not in self._models:
            self._models[name] = tiny.make(name, self.root / f"{name}.shape")
        return self._models[name]

    def lora(
        self, name: str, layout: str, *, seed: int = 0, components: Sequence[str] = ("unet",), **more: Any
    ) -> pathlib.Path:
        path = self.root / "loras" / f"{name}.{layout}.{'+'.join(components)}.{seed}.safetensors"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(tiny_loras.lora(self.model(name), layout, seed=seed, components=components, **more))
        return path

    def plain(self, base: pathlib.Path, loras: Loras = (), **options: Any) -> Any:
        """What hotshelf is compared with."""
        import diffusers

        with tiny.quiet():
            pipe = diffusers.DiffusionPipeline.from_pretrained(base, **options)
            for number, (path, _) in enumerate(loras):
                pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=f"plain{number}")
            if loras:
                pipe.set_adapters([f"plain{number}" for number in range(len(loras))], [scale for _, scale in loras])
        return pipe

    def plain_image(self, base: pathlib.Path, loras: Loras = ()) -> bytes:
        key = (base, tuple(loras))
        if key not in self._drawn:
            self._drawn[key] = draw(self.plain(base, loras))
        return self._drawn[key]

    @cached_property
    def sd(self) -> pathlib.Path:
        return self.base("sd")


def draw(pipe: Any) -> bytes:
    """The same two steps from the same noise."""
    import torch

    options: dict[str, Any] = {"num_inference_steps": 2, "height": 16, "width": 16}
    if "Img2Img" in type(pipe).__name__:
        picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        options = {"num_inference_steps": 4, "image": picture}
    pipe.set_progress_bar_config(disable=True)
    with tiny.quiet():
        drawn = pipe("a red cat", generator=torch.Generator().manual_seed(7), output_type="np", **options)
    return bytes(drawn.images.tobytes())


def source(path: pathlib.Path) -> str:
    return f"file://{path}"


def wanted(loras: Loras) -> list[dict[str, Any]]:
    """As `load_pipeline` wants them, on the shelf."""
    return [{"path": source(path), "scale": scale} for path, scale in loras]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory, library: Library) -> Iterator[Daemon]:
    """A daemon that may read the library; whoever stops it uses `make_daemon` instead."""
    with Daemon(tmp_path_factory.mktemp("shelf"), roots=[str(library.root)], revalidate_s=3600) as daemon:
        yield daemon


@pytest.fixture
def own_shelf(make_daemon: Callable[..., Daemon], library: Library) -> Daemon:
    """A daemon of this test's own: what is kept there was kept by this test."""
    return make_daemon(roots=[str(library.root)], revalidate_s=3600)


@pytest.fixture(scope="session")
def client(shelf: Daemon) -> hotshelf.Client:
    return client_of(shelf)


def client_of(daemon: Daemon) -> hotshelf.Client:
    return hotshelf.Client(daemon.socket, daemon.store)


@pytest.fixture
def cache() -> PipelineCache:
    return PipelineCache()


@pytest.fixture
def load(client: hotshelf.Client, cache: PipelineCache) -> Callable[..., Any]:
    """`load(folder, loras)`: through the daemon, into this test's own cache."""

    def load(base: pathlib.Path, loras: Loras = (), /, **options: Any) -> Any:
        return hotshelf.load_pipeline(
            source(base), **{"loras": wanted(loras), "client": client, "cache": cache, "timeout": 60, **options}
        )

    return load
