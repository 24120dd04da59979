"""Without patterns, what a pipeline's own index asks for is fetched, and nothing else that lies in the repository."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

import hotshelf
from hotshelf.errors import OriginUnavailable
from hotshelf.pipelines import needs
from tests import objects
from tests.daemon_process import Daemon
from tests.pipelines import tiny
from tests.pipelines.conftest import Library, client_of, draw
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
}
NEEDED = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/spiece.model",
    "unet/config.json",
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
]
VARIANT = [
    "text_encoder/model.fp16.safetensors",
    "unet/diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
    "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
]
NEVER = [
    "README.md",
    "sample.png",
    "v1-5-pruned.safetensors",
    "v1-5-pruned.ckpt",
    "safety_checker/model.safetensors",
    "text_encoder/flax_model.msgpack",
    "text_encoder/pytorch_model.bin",
    "text_encoder/model.onnx",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.fp8_e4m3fn.safetensors",
    "unet/openvino_model.xml",
    "vae/diffusion_pytorch_model.safetensors",
]


def test_a_plain_pipeline_needs_its_components_folders_in_safetensors() -> None:
    chosen = needs.patterns(INDEX, None)
    assert [path for path in NEEDED + VARIANT + NEVER if chosen.selects(path)] == [*NEEDED, VARIANT[-1]]


def test_a_variant_needs_its_own_weights_and_plain_ones_only_where_it_has_none() -> None:
    chosen = needs.patterns(INDEX, "fp16")
    configured = [path for path in NEEDED if not path.endswith(".safetensors")]
    assert sorted(path for path in NEEDED + VARIANT + NEVER if chosen.selects(path)) == sorted(configured + VARIANT)
    there = [path for path in configured + VARIANT if not path.endswith("model.fp16.safetensors")]
    assert needs.lacking(INDEX, there) == ["text_encoder"]
    wider = needs.patterns(INDEX, "fp16", ["text_encoder"])
    assert wider.selects("text_encoder/model.safetensors")
    assert not wider.selects("unet/diffusion_pytorch_model-00001-of-00002.safetensors")


def test_a_null_component_is_not_there_and_a_setting_is_none() -> None:
    assert sorted(needs.components(INDEX)) == ["scheduler", "text_encoder", "tokenizer", "unet"]


# ---- at a real origin


@pytest.fixture
def published(library: Library, seaweedfs: SeaweedFS, bucket: str, prefix: str) -> Callable[..., str]:
    """`published({path: bytes})`: the tiny pipeline and more, in the bucket; its source."""

    def publish(more: dict[str, bytes], *, without: Iterable[str] = ()) -> str:
        tree = {path: data for path, data in objects.read(library.sd).items() if path not in set(without)}
        objects.put(seaweedfs, bucket, f"{prefix}/sd", {**tree, **more})
        return f"s3://{bucket}/{prefix}/sd"

    return publish


def fetched(recorder: Recorder, prefix: str) -> set[str]:
    asked = {one.key.removeprefix(f"{prefix}/sd/") for one in recorder.matching(method="GET", prefix=f"{prefix}/sd/")}
    return asked - {"hotshelf.json"}  # a look whether it was pushed


@pytest.mark.torch
def test_at_the_origin_only_what_is_needed_is_asked_for(
    library: Library, published: Callable[..., str], daemon: Daemon, recorder: Recorder, prefix: str
) -> None:
    junk = objects.safetensors("junk", 4096)
    source = published(dict.fromkeys(NEVER, junk) | {"vae/diffusion_pytorch_model.fp16.safetensors": junk} | _real_vae(library))
    pipe = hotshelf.load_pipeline(source, client=client_of(daemon), cache=None, timeout=60)
    assert fetched(recorder, prefix) == set(objects.read(library.sd))
    assert draw(pipe) == library.plain_image(library.sd)


def _real_vae(library: Library) -> dict[str, bytes]:
    name = "vae/diffusion_pytorch_model.safetensors"
    return {name: (library.sd / name).read_bytes()}


@pytest.mark.torch
def test_a_variant_is_taken_where_there_is_one(
    library: Library,
    published: Callable[..., str],
    daemon: Daemon,
    recorder: Recorder,
    prefix: str,
    cache: hotshelf.PipelineCache,
) -> None:
    """As published on hubs: fp16 beside fp32, and one component that has no variant."""
    import torch

    half = tiny.make("sd", library.root / "half.parts", seed=5).to(torch.float16)
    with tiny.quiet():
        half.save_pretrained(library.root / "half", variant="fp16")
    saved = objects.read(library.root / "half")
    vae = "vae/diffusion_pytorch_model.fp16.safetensors"
    source = published({path: data for path, data in saved.items() if ".fp16." in path and path != vae})
    client = client_of(daemon)
    pipes = [
        hotshelf.load_pipeline(place, variant="fp16", dtype="float16", client=client, cache=cache, timeout=60)
        for place in (source, source, str(_beside(library, saved, vae)))
    ]
    weights = {path for path in fetched(recorder, prefix) if path.endswith(".safetensors")}
    assert weights == {
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert [hotshelf.explain(pipe)["served_from"] for pipe in pipes] == ["built", "memory", "memory"]
    plain = library.plain(library.root / "beside", variant="fp16", torch_dtype=torch.float16)
    for pipe in pipes:
        ours, theirs = pipe.unet.state_dict(), plain.unet.state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def _beside(library: Library, saved: dict[str, bytes], but: str) -> Any:
    tree = objects.read(library.sd) | {path: data for path, data in saved.items() if ".fp16." in path and path != but}
    return objects.write(library.root / "beside", tree)


@pytest.mark.torch
def test_patterns_that_are_given_are_obeyed(
    library: Library, published: Callable[..., str], daemon: Daemon, recorder: Recorder, prefix: str
) -> None:
    source = published({"README.md": b"read me", "sample.png": b"\x89PNG"})
    pipe = hotshelf.load_pipeline(source, ignore_patterns=["*.png"], client=client_of(daemon), cache=None, timeout=60)
    assert fetched(recorder, prefix) == {*objects.read(library.sd), "README.md"}
    assert draw(pipe) == library.plain_image(library.sd)


@pytest.mark.torch
@pytest.mark.parametrize("pushed", [False, True])
def test_a_pinned_revision_is_that_of_what_was_needed_or_of_the_whole(
    library: Library, seaweedfs: SeaweedFS, daemon: Daemon, recorder: Recorder, bucket: str, prefix: str, pushed: bool,
    cache: hotshelf.PipelineCache, published: Callable[..., str],
) -> None:  # fmt: skip
    source, client = published({"README.md": b"read me"}), client_of(daemon)
    if pushed:
        source = _pushed(library, seaweedfs, bucket, prefix)
    with client.acquire(source, timeout=60) as lease:
        whole = lease.revision
    needed = hotshelf.explain(hotshelf.load_pipeline(source, client=client, cache=None))["revision"]
    for pin in (whole,) if pushed else (needed, whole):
        for pipe in (
            hotshelf.load_pipeline(f"{source}@{pin}", client=client, cache=cache),
            hotshelf.load_pipeline(source, revision=pin, client=client, cache=cache),
        ):
            assert hotshelf.explain(pipe)["revision"] == (needed if pushed else pin)
            assert draw(pipe) == library.plain_image(library.sd)
    with pytest.raises(hotshelf.errors.HotshelfError, match=r"not|revision") as refused:
        hotshelf.load_pipeline(source, revision=f"sha256:{'0' * 64}", client=client, cache=cache, timeout=30)
    assert refused.value.code in ("integrity_error", "not_found")


def _pushed(library: Library, seaweedfs: SeaweedFS, bucket: str, prefix: str) -> str:
    """What `hotshelf push` leaves: content-named blobs, a manifest, and the pointer to it."""
    tree = {**objects.read(library.sd), "README.md": b"read me"}
    objects.put(seaweedfs, bucket, f"{prefix}/pushed", objects.published(tree))
    return f"s3://{bucket}/{prefix}/pushed"


@pytest.mark.torch
def test_what_was_acquired_as_a_whole_is_built_with_the_origin_down(
    library: Library, published: Callable[..., str], daemon: Daemon, recorder: Recorder
) -> None:
    source, client = published({}), client_of(daemon)
    with client.acquire(source, timeout=60), recorder.down():
        pipe = hotshelf.load_pipeline(source, client=client, cache=None, timeout=60)
        assert draw(pipe) == library.plain_image(library.sd)
        with pytest.raises(OriginUnavailable):
            hotshelf.load_pipeline(f"{source}-never-seen", client=client, cache=None, timeout=20)


@pytest.mark.torch
def test_the_second_process_of_a_node_asks_the_origin_for_nothing(
    library: Library, published: Callable[..., str], daemon: Daemon, recorder: Recorder, bucket: str, prefix: str,
    seaweedfs: SeaweedFS,
) -> None:  # fmt: skip
    source = published({})
    style = library.lora("sd", "kohya", seed=6, components=("unet", "text_encoder"))
    with seaweedfs.client() as s3:
        s3.put_object(Bucket=bucket, Key=f"{prefix}/style.safetensors", Body=style.read_bytes())
    loras = [{"path": f"s3://{bucket}/{prefix}/style.safetensors", "scale": 0.7}]
    images = [draw(hotshelf.load_pipeline(source, loras=loras, client=client_of(daemon), cache=hotshelf.PipelineCache()))]
    with recorder.down():
        asked = len(recorder.requests)
        images += [draw(hotshelf.load_pipeline(source, loras=loras, client=client_of(daemon), cache=hotshelf.PipelineCache()))]
        assert len(recorder.requests) == asked
    assert images == [library.plain_image(library.sd, [(style, 0.7)])] * 2
