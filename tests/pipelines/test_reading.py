"""How weights are read: mapped from a disk of this machine; from a network volume as a whole, or after reading ahead."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

import hotshelf
from hotshelf import PipelineCache
from hotshelf.errors import IntegrityError
from hotshelf.pipelines import reading
from hotshelf.warming import warm
from tests.pipelines.conftest import Library, draw, source

pytestmark = pytest.mark.torch


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything lies on NFS, as far as `load_pipeline` can see."""
    monkeypatch.setattr(reading, "file_system_of", lambda _path: "nfs4")


def is_mapped(folder: pathlib.Path) -> bool:
    """Whether weights in a folder, or the blobs that it links to, are mapped into this process."""
    weights = [path.resolve() for path in folder.glob("*.safetensors")]
    assert weights
    return any(str(path) in pathlib.Path("/proc/self/maps").read_text() for path in weights)


@pytest.mark.parametrize(
    ("library", "kind", "expected"),
    [
        ("diffusers", "ext4", "mapped"),
        ("transformers", "overlay", "mapped"),
        ("diffusers", "", "mapped"),
        ("diffusers", "nfs4", "whole"),
        ("diffusers", "fuse.juicefs", "whole"),
        ("transformers", "cifs", "ahead"),
        ("stable_diffusion", "virtiofs", "ahead"),
    ],
)
def test_the_way_is_chosen_by_file_system_and_by_what_the_library_can(library: str, kind: str, expected: str) -> None:
    assert reading.way(library, kind) == expected


def test_a_disk_of_this_machine_is_mapped_from(library: Library, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "file_system_of", lambda _path: "ext4")
    folder = library.base("sd", seed=11)
    pipe = load(folder)
    assert hotshelf.explain(pipe)["reading"] == {
        name: {"file_system": "ext4", "way": "mapped"} for name in ("unet", "vae", "text_encoder")
    }
    assert hotshelf.explain(load(folder))["reading"] == {}  # in memory: nothing was read
    alone = hotshelf.load_pipeline(str(folder), cache=None)
    assert is_mapped(folder / "unet"), alone


@pytest.mark.usefixtures("network")
def test_a_network_volume_is_read_without_mapping_or_ahead_of_it(library: Library) -> None:
    folder = library.base("sd", seed=12)
    pipe = hotshelf.load_pipeline(str(folder), cache=None)
    said = hotshelf.explain(pipe)["reading"]
    assert {name: one["way"] for name, one in said.items()} == {"unet": "whole", "vae": "whole", "text_encoder": "ahead"}
    size = (folder / "text_encoder" / "model.safetensors").stat().st_size
    ahead = said["text_encoder"]["ahead"]
    assert (ahead["read_bytes"] + ahead["cached_bytes"], ahead["short_of"]) == (size, None)
    assert not is_mapped(folder / "unet")
    assert not is_mapped(folder / "vae")
    assert draw(pipe) == library.plain_image(folder)


@pytest.mark.usefixtures("network")
def test_what_is_drawn_is_the_same_with_loras_and_parts(library: Library, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loras = [(library.lora("sd", "kohya", seed=6), 0.5)]
    read = list[str]()
    monkeypatch.setattr(reading, "warm", lambda sizes: read.extend(sizes) or warm(sizes))
    other = library.base("sd", seed=1)
    pipe = load(library.sd, loras)
    assert draw(pipe) == library.plain_image(library.sd, tuple(loras))
    assert len(read) == 2  # the text encoder's file and the LoRA's
    parts = load(library.sd, components={"vae": source(other / "vae")}, cache=PipelineCache())
    assert hotshelf.explain(parts)["reading"]["vae"] == {"file_system": "nfs4", "way": "whole"}
    assert {name for name, one in hotshelf.explain(parts)["reading"].items() if one["way"] == "ahead"} == {"text_encoder"}


@pytest.mark.usefixtures("network")
def test_a_file_that_cannot_be_read_ahead_is_named(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise IntegrityError("model.safetensors cannot be read: Stale file handle")

    monkeypatch.setattr(reading, "warm", fail)
    with pytest.raises(IntegrityError, match="Stale file handle"):
        hotshelf.load_pipeline(str(library.sd), cache=None)
