"""`hotshelf build`: pipelines made ahead of time, so that no worker is the first to need them."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Mapping
from typing import Any

import click

from hotshelf.cli import progress
from hotshelf.cli.output import Output
from hotshelf.cli.verb import client, verb
from hotshelf_shared.errors import HotshelfError, InvalidRequest
from hotshelf_shared.wire import nearest

#: What is this process's business and not the recipe's.
_NOT_IN_A_RECIPE = frozenset({"cache", "client", "on_progress", "snapshot", "attention"})


@verb("build", example="hotshelf build sdxl-with-style.yaml   # source: sdxl, loras: [...], lora_mode: fuse, dtype: float16")
@click.argument("recipe", metavar="RECIPE.yaml", type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path))
@click.option("--pin", is_flag=True, help="Keep what was built until it is unpinned.")
@click.option("--dry-run", is_flag=True, help="Check the recipe and say what would be built.")
def build(out: Output, *, recipe: pathlib.Path, pin: bool, dry_run: bool) -> None:
    """Build the pipelines of RECIPE.yaml and keep them on the shelf.

    A recipe has the arguments of hotshelf.load_pipeline: source, loras, lora_mode, dtype, variant, components, …; or
    `pipelines:`, a list of such. Workers that ask for the same load what was built. `compile: {mode: aot, shapes: [{height:
    1024, width: 1024, batch: 1}]}` compiles the denoiser for these sizes as well; it holds on this kind of machine only.
    """
    orders = _orders(recipe)
    built = []
    for order in orders:
        if dry_run:
            out.note(f"would build {order['source']}")
            built.append({"source": order["source"], "built": False})
        else:
            built.append(_build(out, order, pin=pin))
    lines = [f"{one['source']}  pipeline:{one['key']}  {one['path']}" for one in built if "key" in one]
    out.result({"pipelines": built}, human=lines, quiet=[str(one["key"]) for one in built if "key" in one])


def _build(out: Output, order: dict[str, Any], *, pin: bool) -> dict[str, Any]:
    from hotshelf.pipelines import explain, load_pipeline
    from hotshelf.pipelines.compilation import ahead

    plan = ahead.Plan.parse(order.get("compile"))
    order = {**order, "compile": plan.mode if plan is not None else False}
    with progress.shown(out) as show:
        pipe = load_pipeline(**order, client=client(), cache=None, snapshot=True, on_progress=show)
    if plan is not None:
        out.note(f"compiling {order['source']} for {len(plan.sizes)} sizes")
        ahead.carry_out(plan, pipe)
    how = explain(pipe)
    key = how["pipeline_key"] if how["lora_mode"] == "fuse" or not how["loras"] else how["snapshot"]["key"]
    if pin:
        client().pin(f"pipeline:{key}")
    found = client().pipeline(key)
    return {
        "source": order["source"],
        "key": key,
        "revision": found["revision"],
        "path": found["path"],
        "built": how["served_from"] == "built",
        "phases": how["phases"],
        "compile": how["compile"],
    }


def _orders(path: pathlib.Path) -> list[dict[str, Any]]:
    """Every pipeline of the file, its fields known. Raises InvalidRequest."""
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise HotshelfError(f"this needs {error.name}", hint="pip install 'hotshelf[worker]'") from error
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidRequest(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    listed = body.get("pipelines") if isinstance(body, Mapping) and "pipelines" in body else [body]
    if not isinstance(listed, list) or not listed or not all(isinstance(one, Mapping) for one in listed):
        raise InvalidRequest(f"{path} holds no recipe", hint="Write `source: NAME` and the other arguments of load_pipeline.")
    return [_order(one, path) for one in listed]


def _order(body: Mapping[Any, Any], path: pathlib.Path) -> dict[str, Any]:
    from hotshelf.pipelines import load_pipeline
    from hotshelf.pipelines.compilation.ahead import Plan
    from hotshelf.pipelines.order import PipelineOrder

    known = [name for name in inspect.signature(load_pipeline).parameters if name not in _NOT_IN_A_RECIPE]
    for name in body:
        if name not in known:
            raise InvalidRequest(f"{path} has an unknown field {str(name)[:80]!r}", hint=nearest(str(name), known))
    if "source" not in body:
        raise InvalidRequest(f"{path} names no source", hint="Write `source: s3://BUCKET/PREFIX`, or a configured name.")
    order = {str(name): value for name, value in body.items()}
    plan = Plan.parse(order.get("compile"))
    PipelineOrder.of(**{**order, "compile": plan.mode if plan is not None else False})
    return order


VERBS = (build,)
