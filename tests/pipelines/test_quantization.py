"""Quantization configs go to diffusers as they are; what they say is part of the recipe."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest

import hotshelf
from hotshelf import PipelineCache
from hotshelf.errors import InvalidRequest
from hotshelf.pipelines.order import PipelineOrder
from tests.daemon_process import Daemon
from tests.pipelines.conftest import Library, client_of, draw, source
from tests.waiting import wait_until

pytestmark = pytest.mark.torch
NF4 = {"quant_backend": "bitsandbytes_4bit", "quant_kwargs": {"load_in_4bit": True}, "components_to_quantize": ["unet"]}


def said(config: object) -> str | None:
    return PipelineOrder.of("s3://b/m", quantization_config=config).quantization


class Bits:
    """A library's own config, as far as anybody can see."""

    def __init__(self, bits: int) -> None:
        self.quant_method, self.bits = "bitsandbytes", bits


def test_equal_configs_are_the_same_recipe_and_others_are_not() -> None:
    assert said(NF4) == said(dict(reversed(NF4.items())))
    assert said(NF4) != said({**NF4, "quant_kwargs": {"load_in_4bit": False}})
    one, same, other = ({"quant_mapping": {"unet": Bits(bits)}} for bits in (8, 8, 4))
    assert said(one) == said(same) != said(other)
    assert "0x" not in str(said(one)), "where an object lies is no part of a recipe"
    assert said(None) is None
    quanto = {"quant_mapping": {"unet": {"quant_method": "quanto", "weights_dtype": "int8"}}}
    assert '"optimum-quanto"' in str(said(quanto)), "its library's version counts"


def test_what_no_backend_takes_is_a_sentence(library: Library, load: Any) -> None:
    for config in ({"quant_backend": "tin-foil"}, {"quant_mapping": {"unet": {"quant_method": "tin-foil"}}}, {"bits": 4}):
        with pytest.raises(InvalidRequest, match="quantization_config: ") as refused:
            load(library.sd, quantization_config=config)
        assert refused.value.hint
    assert draw(load(library.sd)) == library.plain_image(library.sd)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_backend_that_is_not_installed_is_named(library: Library, load: Any) -> None:
    with pytest.raises(InvalidRequest, match="bitsandbytes"):
        load(library.sd, quantization_config=NF4)
    assert draw(load(library.sd)) == library.plain_image(library.sd)


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed: quantization itself is NOT TESTED")
def test_a_quantized_pipeline_is_kept_and_draws_the_same(library: Library, make_daemon: Callable[..., Daemon]) -> None:
    from diffusers import PipelineQuantizationConfig, TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    client = client_of(make_daemon(roots=[str(library.root)]))
    config = PipelineQuantizationConfig(quant_mapping={"transformer": TorchAoConfig(Int8WeightOnlyConfig())})
    order: dict[str, Any] = {"quantization_config": config, "dtype": "bfloat16", "client": client}
    built = hotshelf.load_pipeline(source(library.base("sd3")), cache=PipelineCache(), **order)
    wait_until(lambda: hotshelf.explain(built)["snapshot"]["state"] == "saved", what="the pipeline to be saved")
    again = hotshelf.load_pipeline(source(library.base("sd3")), cache=PipelineCache(), **order)
    assert hotshelf.explain(again)["served_from"] == "snapshot"
    assert hotshelf.explain(again)["pipeline_key"] == hotshelf.explain(built)["pipeline_key"]
    assert draw(again) == draw(built)
