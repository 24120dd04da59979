"""What cannot be built is refused with a typed error that names the culprit and says what to do."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest

import hotshelf
from hotshelf.errors import AccessDenied, HotshelfError, InvalidRequest, NotFound, UnsafeContent
from hotshelf.pipelines.order import PipelineOrder
from tests import objects
from tests.daemon_process import Daemon
from tests.pipelines.conftest import Library, client_of, draw, source, wanted
from tests.servers.seaweedfs import SeaweedFS

NOWHERE = {"client": hotshelf.Client("/nowhere/at-all"), "timeout": 0.2}


@pytest.mark.parametrize(
    "scale", [float("nan"), float("inf"), -float("inf"), pytest.param(10**400, id="a huge one"), "0.7", True, None, [1.0]]
)
def test_a_scale_that_is_no_finite_number_is_refused_before_anything_is_asked(scale: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"scale of s3://b/l\.safetensors is .* no finite number") as refused:
        hotshelf.load_pipeline("s3://b/m", loras=[{"path": "s3://b/l.safetensors", "scale": scale}], **NOWHERE)  # type: ignore[arg-type]
    assert refused.value.hint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is not supported"),
        ({"dtype": "flaot16"}, "dtype 'flaot16'"),
        ({"device": "tpu"}, "device 'tpu' is not supported"),
        ({"device": "cuda:first"}, "device 'cuda:first'"),
        ({"attention": "fast"}, "attention 'fast'"),
        ({"attention": 3}, "attention 3"),
        ({"variant": "../fp16"}, "variant"),
        ({"loras": "s3://b/l"}, "loras is a list"),
        ({"loras": 7}, "loras is a list"),
        ({"loras": [7]}, "a LoRA is a path"),
        ({"loras": [{"scale": 1.0}]}, "no path"),
        ({"loras": [{"path": "s3://b/l", "weight": 1.0}]}, "unknown field 'weight'"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": "soon"}, "timeout"),
        ({"lora_mode": "melt"}, "lora_mode"),
        ({"compile": "fast"}, "compile 'fast'"),
        ({"revision": {"a": 1}}, "revision is a word"),
        ({"device_map": {"unet": 0}}, "device_map is a word"),
        ({"snapshot": "always"}, "snapshot"),
    ],
)
def test_an_argument_that_cannot_be_meant_is_refused_before_anything_is_asked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        hotshelf.load_pipeline("s3://b/m", **{**NOWHERE, **options})
    assert refused.value.hint


@pytest.mark.parametrize(("field", "value"), [("max_bytes", -1), ("max_pipelines", 1.5), ("max_bytes", True)])
def test_a_bound_that_is_no_count_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=field):
        hotshelf.PipelineCache(**{field: value})


def test_one_order_has_one_form() -> None:
    def order(**options: Any) -> PipelineOrder:
        given = dict.fromkeys(
            ("device", "dtype", "allow_patterns", "ignore_patterns", "revision", "variant", "timeout"), None
        ) | {"loras": (), "attention": "auto"}
        return PipelineOrder.of("s3://b/m", **{**given, **options})

    assert order(dtype="half", loras=["s3://b/l"]) == order(dtype="torch.float16", loras=[{"path": "s3://b/l", "scale": 1}])
    assert order(device="cuda", dtype="fp16").wish == order(timeout=3).wish != order(variant="fp16").wish


def test_explain_knows_only_what_was_made_here() -> None:
    for stranger in (object(), None, {}, 3):
        with pytest.raises(InvalidRequest, match="not made by"):
            hotshelf.explain(stranger)


# ---- LoRAs

BAD_LORAS: dict[str, tuple[Callable[[Library], pathlib.Path], str]] = {
    "for a wider base": (
        lambda library: library.lora("sd-wide", "diffusers"),
        r"size mismatch for down_blocks\.1\.attentions\.0\.transformer_blocks\.0\.attn1\.to_\w+\S*lora",
    ),
    "for a wider base, kohya": (lambda library: library.lora("sd-wide", "kohya"), r"size mismatch for down_blocks\.1"),
    "for SDXL's text encoders": (
        lambda library: library.lora("sdxl", "diffusers", components=("text_encoder_2",)),
        r"only 0 of its 8 layers .* first without is text_encoder_2\.text_model\.encoder\.layers\.0\.self_attn\.",
    ),
    "half of it": (lambda library: doctored(library, "half"), r"only 32 of its 33 layers .* unet\.mid_block\.nowhere\.to_q"),
    "of Flux": (lambda library: library.lora("flux", "diffusers", components=("transformer",)), r"only 0 of its 10 layers"),
    "no LoRA but weights": (lambda library: doctored(library, "weights"), r"first tensor is conv_in\.bias"),
    "no safetensors": (lambda library: doctored(library, "noise"), "is no safetensors file|does not start as one"),
    "empty": (lambda library: doctored(library, "nothing"), "does not fit|no tensors"),
}


def doctored(library: Library, how: str) -> pathlib.Path:
    """A LoRA file gone wrong."""
    import torch
    from safetensors.torch import load, save

    state = load(library.lora("sd", "diffusers", seed=1).read_bytes())
    extra = {f"unet.mid_block.nowhere.to_q.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
    path = library.root / "loras" / f"bad-{how}.safetensors"
    path.write_bytes(
        {
            "half": lambda: save(state | extra),
            "weights": lambda: save({"conv_in.weight": torch.ones(2), "conv_in.bias": torch.ones(2)}),
            "noise": lambda: objects.noise(how, 4096),
            "nothing": lambda: save({}),
        }[how]()
    )
    return path


@pytest.mark.torch
@pytest.mark.parametrize("which", BAD_LORAS)
@pytest.mark.parametrize("where", ["shelf", "disk"])
def test_a_lora_that_does_not_fit_is_refused_naming_what_does_not(library: Library, load: Any, which: str, where: str) -> None:
    make, says = BAD_LORAS[which]
    path = make(library)
    with pytest.raises(HotshelfError, match=says) as refused:
        load(library.sd, loras=wanted([(path, 1.0)]) if where == "shelf" else [str(path)])
    assert str(path) in refused.value.message or path.name in refused.value.message
    assert refused.value.code in ("invalid_request", "unsafe_content")
    assert refused.value.hint


@pytest.mark.torch
def test_a_folder_of_several_weight_files_is_no_lora(library: Library, load: Any, tmp_path: pathlib.Path) -> None:
    file = library.lora("sd", "kohya", seed=5)
    for folder in (library.root / "two-loras", tmp_path / "two-loras"):
        folder.mkdir()
        for name in ("a.safetensors", "b.safetensors"):
            (folder / name).write_bytes(file.read_bytes())
    with pytest.raises(InvalidRequest, match=r"2 weight files: a\.safetensors, b\.safetensors"):
        load(library.sd, [(library.root / "two-loras", 1.0)])
    with pytest.raises(InvalidRequest, match=r"2 weight files: a\.safetensors, b\.safetensors"):
        load(library.sd, loras=[str(tmp_path / "two-loras")])


@pytest.mark.torch
def test_a_lora_that_is_not_there_is_named(library: Library, load: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(NotFound, match="gone"):
        load(library.sd, [(library.root / "gone.safetensors", 1.0)])
    with pytest.raises(NotFound, match="gone"):
        load(library.sd, loras=[str(tmp_path / "gone.safetensors")])


@pytest.mark.torch
def test_a_pipeline_that_takes_no_loras_says_so(library: Library, load: Any) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    folder = library.root / "ddpm"
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    assert type(load(folder)).__name__ == "DDPMPipeline"
    with pytest.raises(InvalidRequest, match="DDPMPipeline takes no LoRAs"):
        load(folder, [(library.lora("sd", "kohya"), 1.0)])


# ---- bases


def changed_base(library: Library, name: str, **index: Any) -> pathlib.Path:
    folder = library.root / name
    shutil.copytree(library.sd, folder)
    body = json.loads((folder / "model_index.json").read_text()) | index
    (folder / "model_index.json").write_text(json.dumps(body))
    return folder


@pytest.mark.torch
@pytest.mark.parametrize("where", ["shelf", "disk"])
@pytest.mark.parametrize(
    ("name", "index", "error", "says"),
    [
        (
            "unknown",
            {"_class_name": "StableDiffusion9Pipeline"},
            InvalidRequest,
            "no pipeline class 'StableDiffusion9Pipeline'",
        ),
        ("no-pipeline", {"_class_name": "UNet2DConditionModel"}, InvalidRequest, "no pipeline class 'UNet2DConditionModel'"),
        ("nameless", {"_class_name": None}, InvalidRequest, "names no pipeline class"),
        ("coded", {"_class_name": ["pipeline", "Mine"]}, UnsafeContent, "_class_name is a list"),
        ("foreign", {"unet": ["os", "system"]}, UnsafeContent, "unet comes from the library 'os'"),
        ("dotted", {"unet": ["diffusers.hooks", "X"]}, UnsafeContent, "unet comes from the library 'diffusers.hooks'"),
    ],
)
def test_a_base_that_asks_for_what_there_is_not_is_refused(
    library: Library, load: Any, name: str, index: dict[str, Any], error: type[HotshelfError], says: str, where: str
) -> None:
    folder = changed_base(library, f"{name}-{where}", **index)
    with pytest.raises(error, match=says) as refused:
        load(folder) if where == "shelf" else hotshelf.load_pipeline(str(folder))
    assert refused.value.hint


@pytest.mark.torch
def test_auto_map_in_a_local_folder_is_refused(library: Library) -> None:
    folder = changed_base(library, "auto-mapped")
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {"AutoModel": "evil.Evil"}}))
    (folder / "text_encoder" / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UnsafeContent, match=r"text_encoder/config\.json: auto_map"):
        hotshelf.load_pipeline(str(folder))


@pytest.mark.torch
def test_what_is_no_pipeline_says_so(library: Library, load: Any, tmp_path: pathlib.Path) -> None:
    (library.root / "not-one").mkdir()
    (library.root / "not-one" / "model.safetensors").write_bytes(objects.safetensors(1, 4096))
    with pytest.raises(InvalidRequest, match=r"not-one has no model_index\.json"):
        load(library.root / "not-one")
    with pytest.raises(InvalidRequest, match=r"has no model_index\.json"):
        hotshelf.load_pipeline(str(library.root / "not-one"))
    with pytest.raises(NotFound, match="no folder here"):
        hotshelf.load_pipeline(str(tmp_path / "gone"))


@pytest.mark.torch
def test_a_damaged_base_is_refused_and_the_cause_is_kept(library: Library, load: Any, cache: hotshelf.PipelineCache) -> None:
    folder = changed_base(library, "damaged")
    (folder / "unet" / "config.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="cannot be built into a StableDiffusionPipeline") as refused:
        load(folder)
    assert refused.value.__cause__ is not None
    assert len(cache) == 0


@pytest.mark.torch
def test_a_device_that_is_not_here_is_refused(library: Library, load: Any) -> None:
    for device in ("cuda:7", "mps", "xpu", "cpu:1"):
        with pytest.raises(InvalidRequest, match=f"no device {device} here"):
            load(library.sd, device=device)
    assert draw(load(library.sd, device="cpu")) == library.plain_image(library.sd)


@pytest.mark.torch
def test_a_local_folder_is_no_other_revision_than_it_is(library: Library) -> None:
    with pytest.raises(InvalidRequest, match="is revision sha256:"):
        hotshelf.load_pipeline(str(library.sd), revision=f"sha256:{'0' * 64}")


@pytest.mark.torch
def test_one_private_source_among_several_is_access_denied_and_nothing_is_held(
    library: Library, seaweedfs: SeaweedFS, make_daemon: Callable[..., Daemon], bucket: str, prefix: str
) -> None:
    objects.put(seaweedfs, bucket, f"{prefix}/sd", objects.read(library.sd))
    daemon = make_daemon(
        origins={
            "open": seaweedfs.settings(bucket),
            "closed": seaweedfs.settings("private", secret_access_key="wrong-secret", access_key_id="wrong-key"),
        }
    )
    with pytest.raises(AccessDenied) as refused:
        hotshelf.load_pipeline(
            f"s3://{bucket}/{prefix}/sd", loras=["s3://private/style.safetensors"], client=client_of(daemon), timeout=30
        )
    assert "private" in refused.value.message
    assert refused.value.hint
    assert "wrong-secret" not in str(refused.value)
    assert daemon.call("GET", "/v1/status").body["leases"] == 0
    with pytest.raises(NotFound):
        hotshelf.load_pipeline(
            source(library.root / "nothing"), client=client_of(make_daemon("other", roots=[str(library.root)]))
        )
