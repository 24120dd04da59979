"""What of a pipeline can be compiled and how, what makes two denoisers one graph, and what a call of one is."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

import hotshelf
from hotshelf import compiling
from hotshelf.pipelines.compilation import calls, choice, structure
from hotshelf.pipelines.compilation.ahead import Plan, Size
from hotshelf.pipelines.compilation.forward import JustInTime
from hotshelf.pipelines.compilation.report import Report
from hotshelf.pipelines.order import PipelineOrder
from hotshelf_shared.bundle import BundleName
from hotshelf_shared.errors import InvalidRequest
from tests.pipelines import tiny
from tests.pipelines.conftest import Library, draw

pytestmark = pytest.mark.torch
PLAIN = choice.Looks("UNet", has_repeated_blocks=True, has_adapters=False, is_plain=True)


def order(mode: Any, **more: Any) -> PipelineOrder:
    return PipelineOrder.of("s3://b/m", compile=mode, **more)


@pytest.fixture
def unet(library: Library) -> Any:
    import diffusers

    with tiny.quiet():
        return diffusers.UNet2DConditionModel.from_pretrained(library.base("sd"), subfolder="unet")


# ---- what is compiled


@pytest.mark.parametrize(
    ("wanted", "runs"), [(True, "regional"), ("regional", "regional"), ("full", "full"), ("aot", "aot"), (False, "eager")]
)
def test_what_is_asked_for_is_what_runs_where_it_can(wanted: Any, runs: str) -> None:
    assert choice.choose(order(wanted), {"unet": PLAIN}) == choice.Choice(runs)


@pytest.mark.parametrize(
    ("mode", "looks", "more", "runs", "says"),
    [
        ("regional", choice.Looks("Odd", False, False, True), {}, "full", "Odd names no repeated blocks"),
        ("aot", choice.Looks("UNet", True, True, True), {}, "eager", "adapters lie on the unet"),
        ("aot", choice.Looks("UNet", True, False, False), {}, "eager", "quantized"),
        ("aot", PLAIN, {"offload": "group"}, "eager", "weights move"),
        ("aot", PLAIN, {"device_map": "balanced"}, "eager", "weights move"),
    ],
)
def test_what_cannot_be_compiled_as_asked_says_why(
    mode: str, looks: choice.Looks, more: dict[str, Any], runs: str, says: str
) -> None:
    chosen = choice.choose(order(mode, **more), {"unet": looks})
    assert chosen.runs == runs
    assert says in str(chosen.why)


def test_a_pipeline_without_a_denoiser_is_drawn_plainly() -> None:
    assert choice.choose(order("full"), {}).runs == "eager"


def test_adapters_are_seen_where_they_lie(library: Library) -> None:
    unet_only = library.plain(library.sd, [(library.lora("sd", "kohya", seed=5), 0.7)])
    assert choice.look(unet_only.unet).has_adapters
    assert not choice.look(library.plain(library.sd).unet).has_adapters


def test_whatever_prevents_compiling_is_a_reason_and_no_error(
    library: Library, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> str:
        raise RuntimeError("no such processor")

    monkeypatch.setattr(compiling, "environment_key", broken)
    pipe = load(library.sd, compile="regional")
    assert draw(pipe) == library.plain_image(library.sd)
    said = hotshelf.explain(pipe)["compile"]
    assert (said["mode"], said["runs"]) == ("regional", "eager")
    assert "no such processor" in said["why"]


# ---- what makes one graph of two modules


def _freeu(unet: Any) -> None:
    unet.enable_freeu(0.9, 0.2, 1.2, 1.4)


def _other_kernel(unet: Any) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    unet.set_attn_processor(AttnProcessor())


def _hook(unet: Any) -> None:
    unet.conv_in.register_forward_hook(lambda *_: None)


CHANGES: list[Callable[[Any], Any]] = [
    _freeu, _other_kernel, _hook, lambda unet: unet.fuse_qkv_projections(), lambda unet: unet.train(),
    lambda unet: setattr(unet.down_blocks[0], "gradient_checkpointing", True),
    lambda unet: setattr(unet, "conv_in", copy.deepcopy(unet.conv_in)),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_what_a_module_computes_is_noticed(unet: Any, change: Callable[[Any], Any]) -> None:
    watch = structure.Watch(unet)
    assert not watch.is_changed()
    change(unet)
    assert watch.is_changed()


@pytest.mark.parametrize("change", [*CHANGES[:-1], lambda unet: unet.half()])
def test_another_graph_is_another_structure(unet: Any, change: Callable[[Any], Any]) -> None:
    before = structure.lines(unet)
    change(unet)
    assert structure.digest(structure.lines(unet)) != structure.digest(before)


def test_other_weights_are_the_same_structure(library: Library, unet: Any) -> None:
    other = library.plain(library.base("sd", seed=1)).unet
    assert structure.lines(other) == structure.lines(unet)


# ---- what a call is


def called(unet: Any, **more: Any) -> dict[str, Any]:
    import torch

    return {
        "sample": torch.zeros(2, 4, 8, 8), "timestep": torch.tensor(5), "encoder_hidden_states": torch.zeros(2, 77, 32),
        "return_dict": False, **more,
    }  # fmt: skip


def test_a_call_says_every_shape_and_dtype_and_comes_through_json_unchanged(unet: Any) -> None:
    import torch

    reader = calls.Reader(unet)
    given = called(unet, added_cond_kwargs={"b": torch.zeros(2, 3), "a": None}, down_intrablock_additional_residuals=())
    form, tensors = reader.read((), given)
    assert [tuple(one.shape) for one in tensors] == [(2, 4, 8, 8), (), (2, 77, 32), (2, 3)]
    again = calls.value_of(json.loads(json.dumps(form)), lambda dtype, shape, device: (dtype, shape, device))
    assert again["sample"] == ("float32", (2, 4, 8, 8), "cpu")
    assert again["added_cond_kwargs"] == {"a": None, "b": ("float32", (2, 3), "cpu")}
    assert again["return_dict"] is False
    positional, _ = reader.read((given.pop("sample"),), given)
    assert positional == form


@pytest.mark.parametrize("name", ["sample", "timestep", "encoder_hidden_states"])
def test_another_shape_or_dtype_is_another_call(unet: Any, name: str) -> None:
    reader = calls.Reader(unet)
    given = called(unet)
    form, _ = reader.read((), given)
    others = [reader.read((), {**given, name: other})[0] for other in (given[name].double(), given[name][None])]
    assert len({form, *others}) == 3


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"return_dict": True}, "return_dict"),
        ({"timestep": 5.0}, "timestep is a float"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "scale is a float"),
        ({"cross_attention_kwargs": {"gate": object()}}, "gate is a object"),
        ({"no_such": 1}, "no_such"),
    ],
)
def test_what_cannot_be_written_down_is_no_call_for_a_package(unet: Any, more: dict[str, Any], says: str) -> None:
    with pytest.raises(calls.Unfit, match=says):
        calls.Reader(unet).read((), called(unet, **more))


def test_a_device_s_number_is_this_machine_s_own() -> None:
    form = ("dict", (("x", ("list", (("tensor", "float16", (1,), "cuda:1"), ("word", "int", 3)))),))
    assert calls.anywhere(form) == ("dict", (("x", ("list", (("tensor", "float16", (1,), "cuda"), ("word", "int", 3)))),))


# ---- what a recipe asks for


def test_a_recipe_names_a_mode_or_sizes_too() -> None:
    assert Plan.parse("aot") == Plan("aot", (Size(),))
    body = {"mode": "full", "shapes": [{"height": 64, "width": 32, "batch": 2, "guidance_scale": 1.0}]}
    assert Plan.parse(body) == Plan("full", (Size((("guidance_scale", 1.0), ("height", 64), ("width", 32)), 2),))
    assert Plan.parse(False) is None


@pytest.mark.parametrize(
    "body", ["fast", {"mode": "aot", "shapes": "64"}, {"shape": []}, {"mode": "aot", "shapes": [{"height": True}]},
             {"mode": "aot", "shapes": [{"height": 8.5}]}, {"mode": "aot", "shapes": [512]}],
)  # fmt: skip
def test_a_recipe_that_cannot_be_meant_is_refused_before_anything_is_loaded(body: Any) -> None:
    with pytest.raises(InvalidRequest):
        Plan.parse(body)


# ---- what torch compiles at a call


class _Echo:
    """Stands for a compiled denoiser, of which torch compiles each way of calling once."""

    def __init__(self) -> None:
        self.known: set[tuple[int, ...]] = set()

    def __call__(self, sample: Any, **_: Any) -> tuple[Any]:
        from torch._dynamo.utils import counters

        shape = tuple(sample.shape)
        counters["inductor"]["fxgraph_cache_hit" if shape in self.known else "fxgraph_cache_miss"] += 1
        self.known.add(shape)
        return (sample,)


def test_each_way_of_calling_a_denoiser_has_a_bundle_of_its_own() -> None:
    import torch

    class Denoiser(torch.nn.Module):
        def forward(self, sample: torch.Tensor, return_dict: bool = True) -> Any:
            raise AssertionError("nobody draws plainly here")

    brought: list[Any] = []
    settled: list[BundleName] = []

    def bring(form: Any) -> tuple[BundleName, bool]:
        brought.append(form)
        return BundleName.of("here", f"way{len(brought)}"), False

    module = Denoiser()
    report = Report("full", "full")
    place = JustInTime(module, report, _Echo(), bring, settled.append)
    small, large = torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 16, 16)
    for sample in (small, large, small, large):
        place(sample, return_dict=False)
    assert [calls.shapes_of(form) for form in brought] == ["2x4x8x8", "2x4x16x16"]
    assert [str(name) for name in settled] == ["here/way1", "here/way2"]
    assert (report.body["misses"], report.body["hits"], report.body["served_from"]) == (2, 2, "local")
